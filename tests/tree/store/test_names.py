import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from histories import BASE, MODEL, OTHER_MODEL, diverging, put

from megacontext_vllm.errors import (
    FingerprintMismatchError,
    RequestError,
    StoreError,
    TreeInUseError,
    UnknownTreeError,
)
from megacontext_vllm.tree.meta import read_meta, update_meta
from megacontext_vllm.tree.store import names
from megacontext_vllm.tree.store.library import NamespaceStats, TreeLibrary
from megacontext_vllm.tree.store.places import names_lock


def labels(library: TreeLibrary, namespace: str = "default") -> dict[str, tuple[str | None, bool]]:
    return {info.tree_id: (info.name, info.pinned) for info in library.list(namespace)}


def found(library: TreeLibrary, name: str, namespace: str = "default") -> str:
    tree = library.find(namespace, name)
    library.release(tree)
    return tree.tree_id


def test_rename_and_find(library: TreeLibrary, tmp_path: Path) -> None:
    first, second = put(library, BASE[:2000]), put(library, diverging(500, 2000))
    library.rename("default", first, "Müller: notes")
    assert found(library, "Müller: notes") == first
    assert found(library, "Mu\u0308ller: notes") == first  # the same, spelled with a combining character
    assert labels(library) == {first: ("Müller: notes", False), second: (None, False)}
    assert read_meta(tmp_path / "trees" / "default" / first)["name"] == "Müller: notes"
    with pytest.raises(RequestError, match="another tree is called"):
        library.rename("default", second, "Müller: notes")
    library.rename("default", first, "Müller: notes")  # its own name
    library.rename("default", first, "b")
    library.rename("default", second, "Müller: notes")
    assert (found(library, "b"), found(library, "Müller: notes")) == (first, second)
    library.rename("default", second, None)
    with pytest.raises(UnknownTreeError, match="no tree is called"):
        library.find("default", "Müller: notes")
    assert library.open_trees() == 0


@pytest.mark.parametrize("bad", ["", "a" * 129, "a\nb", "a\0", "\x1b[31m", " a", "a ", "\ud800", "a\u2028b", "0" * 32])
def test_names_that_cannot_be(library: TreeLibrary, bad: str) -> None:
    tree_id = put(library, BASE[:100])
    with pytest.raises(RequestError, match="cannot be the name of a tree"):
        library.rename("default", tree_id, bad)
    with pytest.raises(RequestError):
        library.find("default", bad)
    assert labels(library) == {tree_id: (None, False)}


@pytest.mark.parametrize("good", ["a", "a" * 128, "../../x", "日本語", "default", "0" * 31, "a/b c", "%s'\";--"])
def test_names_that_can_be(library: TreeLibrary, good: str) -> None:
    tree_id = put(library, BASE[:100])
    library.rename("default", tree_id, good)
    assert found(library, good) == tree_id


def test_a_name_is_one_trees_by_namespace_and_model(library: TreeLibrary, tmp_path: Path) -> None:
    other = TreeLibrary(tmp_path, OTHER_MODEL)
    a, b, c = put(library, BASE[:2000]), put(library, BASE[:2000], "abc"), put(other, BASE[:2000])
    library.rename("default", a, "n")
    library.rename("abc", b, "n")
    other.rename("default", c, "n")
    assert (found(library, "n"), found(library, "n", "abc"), found(other, "n")) == (a, b, c)
    with pytest.raises(UnknownTreeError):
        library.find("def", "n")
    for change in (lambda: library.rename("default", c, "m"), lambda: library.pin("default", c, True)):
        with pytest.raises(FingerprintMismatchError):
            change()
    with pytest.raises(FingerprintMismatchError):
        library.delete("default", c)
    assert found(other, "n") == c
    other.close()


@pytest.mark.parametrize("tree_id", ["0" * 32, "x", "..", ""])
def test_unknown_trees(library: TreeLibrary, tree_id: str) -> None:
    mine = put(library, BASE[:2000], "abc")
    for unknown in (tree_id, mine):
        with pytest.raises(UnknownTreeError, match="no tree"):
            library.rename("default", unknown, "n")
        with pytest.raises(UnknownTreeError, match="no tree"):
            library.pin("default", unknown, True)
        with pytest.raises(UnknownTreeError, match="no tree"):
            library.delete("default", unknown)
    assert labels(library, "abc") == {mine: (None, False)}


def test_held_trees_and_trees_of_other_writers_can_be_renamed(library: TreeLibrary, tmp_path: Path) -> None:
    acquired = library.acquire("default", BASE[:2000])
    beside = TreeLibrary(tmp_path, MODEL)  # as the command line beside a server
    beside.rename("default", acquired.tree.tree_id, "n")
    beside.pin("default", acquired.tree.tree_id, True)
    acquired.tree.append(BASE[2000:3000])
    library.release(acquired.tree)  # what the writer knew of old does not come back
    assert labels(library) == labels(beside) == {acquired.tree.tree_id: ("n", True)}
    assert library.list("default")[0].length == 3000
    again = library.find("default", "n")
    assert (again.name, again.pinned) == ("n", True)
    library.release(again)
    beside.close()


def test_a_fork_inherits_neither_name_nor_pin(library: TreeLibrary) -> None:
    tree_id = put(library, BASE[:3000])
    library.rename("default", tree_id, "n")
    library.pin("default", tree_id, True)
    fork = put(library, diverging(2000, 3000))
    assert labels(library) == {tree_id: ("n", True), fork: (None, False)}


def test_names_survive_the_loss_of_the_index(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id, twin = put(library, BASE[:2000]), put(library, diverging(500, 2000))
    library.rename("default", tree_id, "n")
    library.pin("default", tree_id, True)
    library.close()
    update_meta(tmp_path / "trees" / "default" / twin, name="n")  # by hand
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    again = TreeLibrary(tmp_path, MODEL)
    one = found(again, "n")
    assert one in (tree_id, twin)
    other = twin if one == tree_id else tree_id
    assert labels(again)[other][0] is None
    assert labels(again)[tree_id][1]
    again.rename("default", other, "m")
    assert found(again, "m") == other
    again.close()


def test_the_tree_is_believed_more_than_the_index(library: TreeLibrary, tmp_path: Path) -> None:
    first, second = put(library, BASE[:2000]), put(library, diverging(500, 2000))
    library.rename("default", first, "n")
    update_meta(tmp_path / "trees" / "default" / first, name="m", pinned=True)  # past the index
    with pytest.raises(UnknownTreeError):
        library.find("default", "n")
    assert labels(library)[first] == ("m", True)
    update_meta(tmp_path / "trees" / "default" / first, name=None)
    library.rename("default", second, "m")  # the index says it is taken
    assert found(library, "m") == second


@pytest.mark.parametrize("step", ["update_meta", "label"])
def test_killed_between_tree_and_index(tmp_path: Path, step: str) -> None:
    library = TreeLibrary(tmp_path, MODEL)
    first, second = put(library, BASE[:2000]), put(library, diverging(500, 2000))
    library.rename("default", first, "old")
    pid = os.fork()
    if pid == 0:
        with pytest.MonkeyPatch.context() as patch:
            if step == "update_meta":
                patch.setattr(names, "update_meta", lambda *args, **changes: os._exit(0))
            else:
                patch.setattr(library._index, "label", lambda *args, **changes: os._exit(0))
            library.rename("default", first, "new")
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    expected = "old" if step == "update_meta" else "new"
    assert read_meta(tmp_path / "trees" / "default" / first)["name"] == expected
    with pytest.raises(RequestError, match="another tree"):
        library.rename("default", second, expected)
    assert found(library, expected) == first
    library.rename("default", second, "new" if expected == "old" else "old")
    library.close()


def test_a_damaged_tree_can_be_deleted_and_lends_its_name(library: TreeLibrary, tmp_path: Path) -> None:
    first, second = put(library, BASE[:2000]), put(library, diverging(500, 2000))
    library.rename("default", first, "n")
    (tmp_path / "trees" / "default" / first / "meta.json").write_text("{")
    with pytest.raises(UnknownTreeError):
        library.find("default", "n")
    library.rename("default", second, "n")
    assert found(library, "n") == second
    library.delete("default", first)
    assert [info.tree_id for info in library.list("default")] == [second]


def test_delete(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE[:3000])
    library.rename("default", tree_id, "n")
    held = library.get("default", tree_id)
    beside = TreeLibrary(tmp_path, MODEL)
    for one in (library, beside):
        with pytest.raises(TreeInUseError, match="in use"):
            one.delete("default", tree_id)
    assert held.append(BASE[:10]) == 3010
    library.release(held)
    beside.delete("default", tree_id)
    assert list((tmp_path / "trees" / "default").iterdir()) == []
    for one in (library, beside):
        assert one.list("default") == []
        with pytest.raises(UnknownTreeError):
            one.find("default", "n")
        with pytest.raises(UnknownTreeError):
            one.delete("default", tree_id)
    assert library.acquire("default", BASE[:3000]).reused == 0
    beside.close()


def test_stats(library: TreeLibrary, tmp_path: Path) -> None:
    put(library, BASE[:2000])
    put(library, diverging(500, 3000))
    put(library, BASE[:100], "abc")
    other = TreeLibrary(tmp_path, OTHER_MODEL)
    put(other, BASE)
    stats = library.stats()
    assert (stats.trees, stats.tokens) == (3, 5100)
    assert stats.namespaces["default"] == NamespaceStats(2, 5000, stats.bytes - stats.namespaces["abc"].bytes)
    on_disk = {
        info.tree_id: sum(
            file.stat().st_blocks * 512 for file in (tmp_path / "trees" / "default" / info.tree_id).iterdir()
        )
        for info in library.list("default")
    }
    assert {info.tree_id: info.bytes for info in library.list("default")} == on_disk
    assert min(on_disk.values()) >= 4 * 2000
    other.close()


RENAMER = """
import sys
import threading
from pathlib import Path
from megacontext_vllm.errors import RequestError
from megacontext_vllm.tree.store.library import TreeLibrary
store, mine, seed = Path(sys.argv[1]), sys.argv[2:-1], int(sys.argv[-1])
library = TreeLibrary(store, bytes(range(16)))
taken = 0
for k in range(150):
    tree_id = mine[k % len(mine)]
    try:
        library.rename("default", tree_id, f"name {(k * (seed + 1)) % 5}")
    except RequestError as error:
        assert "another tree is called" in str(error), error
        taken += 1
    library.pin("default", tree_id, k % 2 == 0)
library.close()
print(taken)
"""


def test_processes_rename_at_once(library: TreeLibrary, tmp_path: Path) -> None:
    """Each name ends with one tree, and every tree's meta.json says what the index says."""
    trees = [put(library, diverging(common, 2000)) for common in range(0, 300, 100)] + [put(library, BASE[:2000])]
    held = library.get("default", trees[0])  # a writer at work does not matter
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RENAMER, str(tmp_path), *trees, str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(4)
    ]
    taken = 0
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        taken += int(output)
    assert taken > 0
    library.release(held)
    said = {tree_id: read_meta(tmp_path / "trees" / "default" / tree_id) for tree_id in trees}
    assert labels(library) == {tree_id: (meta["name"], meta["pinned"]) for tree_id, meta in said.items()}
    given = [meta["name"] for meta in said.values() if meta["name"]]
    assert len(set(given)) == len(given) > 0
    for tree_id, meta in said.items():
        if meta["name"]:
            assert found(library, meta["name"]) == tree_id


def test_one_at_a_time(library: TreeLibrary, tmp_path: Path) -> None:
    """Whatever changes names, pins, or which trees there are waits for who is at it in another process."""
    named, pinned, gone = (put(library, diverging(common, 2000)) for common in (0, 100, 200))
    work = {
        "named": lambda: library.rename("default", named, "n"),
        "pinned": lambda: library.pin("default", pinned, True),
        "gone": lambda: library.delete("default", gone),
    }
    threads = [threading.Thread(target=each) for each in work.values()]
    with names_lock(tmp_path / "trees"):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.1)
            assert thread.is_alive()
        assert labels(library) == {named: (None, False), pinned: (None, False), gone: (None, False)}
    for thread in threads:
        thread.join()
    assert labels(library) == {named: ("n", False), pinned: (None, True)}


def test_a_failing_index_is_caught_up_with(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE[:2000])

    def fail(*args: object, **kwargs: object) -> bool:
        raise StoreError("the index failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library._index, "label", fail)
        with pytest.raises(StoreError, match="the index failed"):
            library.rename("default", tree_id, "n")
    assert json.loads((tmp_path / "trees" / "default" / tree_id / "meta.json").read_text())["name"] == "n"
    assert found(library, "n") == tree_id
