from pathlib import Path

import numpy as np
import pytest
from histories import BASE, MODEL, check, diverging, put

from megacontext_vllm.errors import FingerprintMismatchError, RequestError, UnknownTreeError
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of
from megacontext_vllm.tree.tree import MegaContextTree

OTHER_MODEL = bytes(range(1, 17))


def write_gists(tree: MegaContextTree, level: int, count: int) -> None:
    header = Header(level, RowType.FLOAT32, 4, 0, MODEL, bytes(16))
    write_rows(tree.gist_path(level), header, 0, np.full((count, 4), level, np.float32))


def test_namespace_never_shows_the_salt() -> None:
    assert namespace_of(None) == "default"
    assert namespace_of("default") != "default"
    assert namespace_of("tenant secret") == namespace_of("tenant secret") != namespace_of("tenant")
    assert "secret" not in namespace_of("secret")
    assert len(bytes.fromhex(namespace_of("\ud800"))) == 16


def test_empty_history(library: TreeLibrary) -> None:
    acquired = library.acquire("default", BASE[:0])
    assert (acquired.tree.length, acquired.reused, acquired.created) == (0, 0, True)
    library.release(acquired.tree)


def test_fork_takes_gists_of_complete_nodes(library: TreeLibrary) -> None:
    acquired = library.acquire("default", BASE[:5000])
    write_gists(acquired.tree, 1, 100)  # lags: 156 are possible
    write_gists(acquired.tree, 2, 4)
    fork = library.acquire("default", diverging(3100, 5000))
    assert fork.reused == 3100
    assert (fork.tree.gist_count(1), fork.tree.gist_count(2)) == (96, 3)
    library.release(fork.tree)
    fork = library.acquire("default", diverging(4500, 5000))
    assert (fork.tree.gist_count(1), fork.tree.gist_count(2)) == (100, 4)
    library.release(fork.tree)
    library.release(acquired.tree)


def test_namespaces_never_match(library: TreeLibrary, tmp_path: Path) -> None:
    mine, yours = namespace_of("mine"), namespace_of("yours")
    tree_id = put(library, BASE, mine)
    for other in ("default", yours):
        acquired = library.acquire(other, BASE)
        assert (acquired.reused, acquired.created) == (0, True)
        assert acquired.tree.path.parent == tmp_path / "trees" / other
        library.discard(acquired.tree)
        assert library.list(other) == []
        with pytest.raises(UnknownTreeError) as foreign:
            library.get(other, tree_id)
        with pytest.raises(UnknownTreeError) as absent:
            library.get(other, "0" * 32)
        assert str(foreign.value).replace(tree_id, "") == str(absent.value).replace("0" * 32, "")
        assert mine not in str(foreign.value)
    library.release(library.get(mine, tree_id))


def test_models_never_match(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE)
    other = TreeLibrary(tmp_path, OTHER_MODEL)
    acquired = other.acquire("default", BASE)
    assert (acquired.reused, acquired.created) == (0, True)
    with pytest.raises(FingerprintMismatchError):
        other.get("default", tree_id)
    assert [info.tree_id for info in other.list("default")] == [acquired.tree.tree_id]
    other.close()
    reopened = TreeLibrary(tmp_path, MODEL)
    assert [info.tree_id for info in reopened.list("default")] == [tree_id]
    reopened.close()


@pytest.mark.parametrize("bad", ["..", "", "../x", "a/b", "A" * 32, "a" * 31, "a" * 32 + "\n", "default", "é" * 32])
def test_ids_cannot_leave_the_store(library: TreeLibrary, bad: str) -> None:
    put(library, BASE)
    with pytest.raises(UnknownTreeError):
        library.get("default", bad)
    if bad not in ("default", "a" * 31):
        with pytest.raises(UnknownTreeError):
            library.get(bad, "a" * 32)
        with pytest.raises(RequestError):
            library.acquire(bad, BASE)


def test_holders_share_one_handle(library: TreeLibrary) -> None:
    first = library.acquire("default", BASE[:2000])
    second = library.acquire("default", BASE[:1500])
    third = library.acquire("default", BASE[:3000])
    assert first.tree is second.tree is third.tree
    assert library.open_trees() == 1
    assert library.list("default")[0].length == 3000
    assert library.get("default", first.tree.tree_id) is first.tree
    for _ in range(3):
        library.release(first.tree)
        assert library.open_trees() == 1
        check(third, BASE[:3000])
    library.discard(first.tree)
    assert library.open_trees() == 0
    with pytest.raises(AssertionError):
        library.release(first.tree)
    assert library.list("default") == []


def test_discard(library: TreeLibrary) -> None:
    first = library.acquire("default", BASE[:2000])
    second = library.acquire("default", BASE[:2000])
    library.discard(first.tree)  # still held once
    check(second, BASE[:2000])
    library.release(second.tree)
    assert first.tree.path.exists()
    library.discard(library.get("default", first.tree.tree_id))
    assert not first.tree.path.exists()
    assert library.list("default") == []
    assert library.acquire("default", BASE[:2000]).reused == 0


def test_other_process_as_writer(library: TreeLibrary, tmp_path: Path) -> None:
    acquired = library.acquire("default", BASE[:3000])
    other = TreeLibrary(tmp_path, MODEL)  # its own handles and locks, like another process
    same = other.acquire("default", BASE[:2000])
    assert same.tree.tree_id == acquired.tree.tree_id
    assert not same.tree.writable
    longer = other.acquire("default", BASE[:4000])  # may not extend it: forks
    check(longer, BASE[:4000])
    assert (longer.reused, longer.created) == (3000, True)
    other.discard(same.tree)  # not the writer: only lets go
    assert acquired.tree.path.exists()
    same = other.acquire("default", BASE[:2000])
    assert same.tree.tree_id in (acquired.tree.tree_id, longer.tree.tree_id)
    other.release(longer.tree)
    other.release(same.tree)
    library.release(acquired.tree)
    assert library.open_trees() == other.open_trees() == 0
    held = other.acquire("default", BASE[:3000])
    assert held.tree.writable
    other.close()


def test_reading_handle_becomes_writer_when_it_can(library: TreeLibrary, tmp_path: Path) -> None:
    acquired = library.acquire("default", BASE[:3000])
    other = TreeLibrary(tmp_path, MODEL)
    same = other.acquire("default", BASE[:3000])
    library.release(acquired.tree)
    longer = other.acquire("default", BASE[:4000])
    assert longer.tree is same.tree
    assert (longer.reused, longer.created, longer.tree.length) == (3000, False, 4000)
    other.close()
