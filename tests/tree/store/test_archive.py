import io
import json
import os
import resource
import tarfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import BASE, GIST, MODEL, OTHER_MODEL, add_gists, contents, gist_header, gist_rows, put, seal
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, RequestError, StoreError
from megacontext_vllm.tree.files.columns import Column
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gists import append_gists, begin_refresh, gist_versions, replace_gists
from megacontext_vllm.tree.store.archive import export_tree
from megacontext_vllm.tree.store.archive_import import import_tree
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.tree import MegaContextTree

OTHER_NET = bytes(range(50, 66))
LONG = np.random.default_rng(1).integers(0, 150_000, 40_000, dtype=np.uint32)


def make(folder: Path, tokens: NDArray[np.uint32], model: bytes = MODEL) -> MegaContextTree:
    tree = MegaContextTree.create(folder, tree_id="a" * 32, namespace="default", model_fingerprint=model)
    tree.append(tokens)
    add_gists(tree)
    return tree


def exported(tree: MegaContextTree) -> bytes:
    file = io.BytesIO()
    export_tree(tree, file)
    return file.getvalue()


def leftovers(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "trees").glob("*/.*"))


@pytest.mark.parametrize("length", [0, 1, 31, 40, 1024, 2000, 40_000])
def test_round_trip(tmp_path: Path, length: int) -> None:
    with closing(make(tmp_path / "a", LONG[:length])) as tree:
        with Column(tree.path, 1, "hits", np.uint32, writable=True) as column:
            column.write(0, np.arange(length // 32, dtype=np.uint32))
        data = exported(tree)
    tree_id = import_tree(tmp_path / "b", io.BytesIO(data), "abc")
    folder = tmp_path / "b" / "trees" / "abc" / tree_id
    assert tree_id == "a" * 32
    expected = contents(tmp_path / "a")
    if length < 32:
        del expected["LOD1.hits.col"]  # there is no such node
    assert contents(folder) == expected
    with closing(MegaContextTree.open(folder, model_fingerprint=MODEL, writable=True)) as again:
        assert (again.namespace, again.tree_id, again.length) == ("abc", tree_id, length)
        assert again.created == tree.created
        assert again.append(LONG[:5]) == length + 5
    assert leftovers(tmp_path / "b") == []


def test_archive_is_a_plain_tar_as_documented(tmp_path: Path) -> None:
    with closing(make(tmp_path / "a", LONG[:2000])) as tree:
        data = exported(tree)
        assert data == exported(tree)  # nothing in it depends on the moment
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == ["manifest.json", "meta.json", "LOD0.ctx", "LOD1.ctx", "LOD2.ctx"]
        assert all(member.isreg() for member in tar)
        files = {member.name: tar.extractfile(member) for member in tar}
        manifest = json.load(files["manifest.json"])  # type: ignore[arg-type]
        rows = np.frombuffer(files["LOD0.ctx"].read()[64:], "<u4")  # type: ignore[union-attr]
    np.testing.assert_array_equal(rows, LONG[:2000])
    assert (manifest["format"], manifest["format_version"], manifest["length"]) == ("megacontext-tree", 1, 2000)
    assert manifest["files"][1]["bytes"] == 64 + 4 * 2000


def test_imported_tree_continues_its_history(tmp_path: Path) -> None:
    source, target = TreeLibrary(tmp_path / "a", MODEL), TreeLibrary(tmp_path / "b", MODEL)
    tree = source.get("default", put(source, BASE[:5000]))
    tree_id = import_tree(tmp_path / "b", io.BytesIO(exported(tree)), "default", model_fingerprint=MODEL)
    source.release(tree)
    acquired = target.acquire("default", BASE[:6000])
    assert (acquired.tree.tree_id, acquired.reused, acquired.created) == (tree_id, 5000, False)
    target.release(acquired.tree)
    assert target.acquire("abc", BASE[:6000]).reused == 0
    source.close()
    target.close()


def test_sealed_spans_travel(tmp_path: Path) -> None:
    make(tmp_path / "a", LONG).close()
    seal(tmp_path / "a", (2, 3), (2, 4), (2, 30))
    with closing(MegaContextTree.open(tmp_path / "a", model_fingerprint=MODEL, writable=False)) as tree:
        data = exported(tree)
    tree_id = import_tree(tmp_path / "b", io.BytesIO(data), "default")
    assert contents(tmp_path / "b" / "trees" / "default" / tree_id) == contents(tmp_path / "a")
    with closing(TreeLibrary(tmp_path / "b", MODEL)) as library:
        acquired = library.acquire("default", LONG)
        assert (acquired.tree.tree_id, acquired.reused) == (tree_id, 40_000)


def test_large_sealed_spans_are_holes_again(tmp_path: Path) -> None:
    make(tmp_path / "a", np.resize(LONG, 200_000)).close()
    seal(tmp_path / "a", (3, 1), (3, 2), (3, 3))
    with closing(MegaContextTree.open(tmp_path / "a", model_fingerprint=MODEL, writable=False)) as tree:
        data = exported(tree)
    tree_id = import_tree(tmp_path / "b", io.BytesIO(data), "default")
    file = tmp_path / "b" / "trees" / "default" / tree_id / "LOD0.ctx"
    assert file.stat().st_size == 64 + 800_000
    assert file.stat().st_blocks * 512 < 800_000 - 3 * 65_536


def test_id_and_name_are_kept_where_free(tmp_path: Path) -> None:
    with closing(TreeLibrary(tmp_path, MODEL)) as library:
        first = put(library, BASE[:2000])
        library.rename("default", first, "the one")
        library.pin("default", first, True)
        tree = library.get("default", first)
        data = exported(tree)
        library.release(tree)
        second = import_tree(tmp_path, io.BytesIO(data), "default")
        other = import_tree(tmp_path, io.BytesIO(data), "abc")
        assert first == other != second
        named = {(space, t.tree_id): (t.name, t.pinned) for space in ("default", "abc") for t in library.list(space)}
        assert named == {
            ("default", first): ("the one", True),
            ("default", second): (None, True),
            ("abc", first): ("the one", True),
        }
        for space, expected in (("default", first), ("abc", other)):
            found = library.find(space, "the one")
            assert found.tree_id == expected
            assert found.name == "the one"
            library.release(found)


def test_only_the_model_asked_for_is_taken(tmp_path: Path) -> None:
    with closing(make(tmp_path / "a", LONG[:100], OTHER_MODEL)) as tree:
        data = exported(tree)
    with pytest.raises(FingerprintMismatchError, match="another model"):
        import_tree(tmp_path / "b", io.BytesIO(data), "default", model_fingerprint=MODEL)
    assert not (tmp_path / "b").exists()
    with pytest.raises(RequestError):
        import_tree(tmp_path / "b", io.BytesIO(data), "../c")
    import_tree(tmp_path / "b", io.BytesIO(data), "default")
    with closing(TreeLibrary(tmp_path / "b", OTHER_MODEL)) as library:
        assert [info.length for info in library.list("default")] == [100]


def test_through_a_pipe(tmp_path: Path) -> None:
    with closing(make(tmp_path / "a", LONG)) as tree:
        reading, writing = os.pipe()

        def work() -> None:
            with open(writing, "wb", buffering=0) as file:
                export_tree(tree, file)

        thread = threading.Thread(target=work)
        thread.start()
        with open(reading, "rb", buffering=0) as file:  # unbuffered, so that reads come short
            tree_id = import_tree(tmp_path / "b", file, "default")
        thread.join()
    assert contents(tmp_path / "b" / "trees" / "default" / tree_id) == contents(tmp_path / "a")


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with closing(make(tmp_path / "a", LONG)) as tree:
        file = io.BytesIO()
        export_tree(tree, file, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 4 * 40_000
    total = seen[-1][1]
    seen.clear()
    file.seek(0)
    import_tree(tmp_path / "b", file, "default", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {t for _, t in seen} == {total}


def test_export_while_the_tree_grows(tmp_path: Path) -> None:
    tree = make(tmp_path / "a", LONG[:1000])
    stop = threading.Event()

    def grow() -> None:
        at = 1000
        while not stop.is_set() and at < len(LONG):
            tree.append(LONG[at : at + 37])
            at += len(LONG[at : at + 37])
            add_gists(tree)

    thread = threading.Thread(target=grow)
    thread.start()
    lengths = []
    try:
        for k in range(20):
            data = exported(tree)
            tree_id = import_tree(tmp_path / "b", io.BytesIO(data), f"{k:x}")
            folder = tmp_path / "b" / "trees" / f"{k:x}" / tree_id
            with closing(MegaContextTree.open(folder, model_fingerprint=MODEL, writable=False)) as copy:
                lengths.append(copy.length)
                np.testing.assert_array_equal(copy.read_tokens(0, copy.length), LONG[: copy.length])
                for level in copy.gist_levels():
                    count = copy.gist_count(level)
                    assert count <= copy.length // 32**level
                    np.testing.assert_array_equal(copy.read_gists(level, 0, count), gist_rows(level, 0, count))
    finally:
        stop.set()
        thread.join()
        tree.close()
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]


def refreshed(level: int, start: int, stop: int) -> NDArray[np.float16]:
    return -gist_rows(level, start, stop)


def test_export_in_the_middle_of_a_refresh(tmp_path: Path) -> None:
    tree = make(tmp_path / "a", LONG)
    begin_refresh(tree.path, OTHER_NET)
    replace_gists(tree.gist_path(1), gist_header(1, OTHER_NET), 100, refreshed(1, 100, 700))
    tree_id = import_tree(tmp_path / "b", io.BytesIO(exported(tree)), "default")
    folder = tmp_path / "b" / "trees" / "default" / tree_id
    for level in (1, 2, 3):
        count = tree.gist_count(level)
        expected = gist_versions(tree.path, level, 0, count)
        np.testing.assert_array_equal(gist_versions(folder, level, 0, count), expected)
    assert sorted(set(gist_versions(folder, 1, 0, 1250).tolist())) == [1, 2]
    tree.close()


def test_export_while_a_refresh_begins_and_runs(tmp_path: Path) -> None:
    """A gist never comes with the name of a net that did not make it."""
    tree = make(tmp_path / "a", LONG)
    stop = threading.Event()

    def refresh() -> None:
        sign = 1
        while not stop.is_set():
            sign = -sign
            net = OTHER_NET if sign < 0 else GIST
            begin_refresh(tree.path, net)
            for at in range(0, 1250, 50):
                replace_gists(tree.gist_path(1), gist_header(1, net), at, sign * gist_rows(1, at, at + 50))

    thread = threading.Thread(target=refresh)
    thread.start()
    judged, refusals = 0, []
    try:
        for k in range(15):
            try:
                data = exported(tree)
            except StoreError as error:
                refusals.append(str(error))
                continue
            tree_id = import_tree(tmp_path / "b", io.BytesIO(data), f"{k:x}")
            folder = tmp_path / "b" / "trees" / f"{k:x}" / tree_id
            with closing(LevelReader(folder / "LOD1.ctx")) as reader:
                rows, net = reader.read(0, 1250), reader.header.gist_fingerprint
            versions = gist_versions(folder, 1, 0, 1250)
            nets = json.loads((folder / "gists.json").read_text())["versions"] if net == bytes(16) else [net.hex()]
            for row, plain, version in zip(rows, gist_rows(1, 0, 1250), versions):
                if version:
                    made_by = bytes.fromhex(nets[version - 1])
                    np.testing.assert_array_equal(row, plain if made_by == GIST else -plain)
                    judged += 1
    finally:
        stop.set()
        thread.join()
        tree.close()
    assert judged > 1000
    assert all("refreshed over and over" in refusal for refusal in refusals)


def test_a_gist_that_changes_while_it_is_read_is_to_be_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = make(tmp_path / "a", LONG)
    begin_refresh(tree.path, OTHER_NET)
    real = LevelReader.read

    def read(reader: LevelReader, start: int, stop: int) -> NDArray[Any]:
        rows = real(reader, start, stop)
        if reader.header.level == 1:  # the refresh gets there right after the row was read
            replace_gists(tree.gist_path(1), gist_header(1, OTHER_NET), 40, refreshed(1, 40, 44))
        return rows

    monkeypatch.setattr(LevelReader, "read", read)
    data = exported(tree)
    monkeypatch.undo()
    tree_id = import_tree(tmp_path / "b", io.BytesIO(data), "default")
    folder = tmp_path / "b" / "trees" / "default" / tree_id
    assert gist_versions(folder, 1, 38, 46).tolist() == [1, 1, 0, 0, 0, 0, 1, 1]
    tree.close()


def test_export_starts_over_when_a_refresh_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = make(tmp_path / "a", LONG)
    real, rounds = LevelReader.read, []

    def read(reader: LevelReader, start: int, stop: int) -> NDArray[Any]:
        if reader.header.level == 1:  # right after the header was written, which names one net for all rows
            rounds.append(1)
            begin_refresh(tree.path, OTHER_NET)
            replace_gists(tree.gist_path(1), gist_header(1, OTHER_NET), 40, refreshed(1, 40, 44))
        return real(reader, start, stop)

    monkeypatch.setattr(LevelReader, "read", read)
    data = exported(tree)
    monkeypatch.undo()
    assert len(rounds) == 2
    tree_id = import_tree(tmp_path / "b", io.BytesIO(data), "default")
    folder = tmp_path / "b" / "trees" / "default" / tree_id
    assert gist_versions(folder, 1, 38, 46).tolist() == [1, 1, 2, 2, 2, 2, 1, 1]
    tree.close()


def test_a_damaged_tree_is_not_exported(tmp_path: Path) -> None:
    with closing(make(tmp_path / "a", LONG)) as tree:
        with tree.gist_path(1).open("r+b") as file:
            file.seek(64 + 500 * 16)
            file.write(b"?")
        with pytest.raises(CorruptTreeError, match=r"rows 480 to 512 of .*LOD1\.ctx"):
            exported(tree)


def test_gists_may_lag_behind(tmp_path: Path) -> None:
    tree = MegaContextTree.create(tmp_path / "a", tree_id="a" * 32, namespace="default", model_fingerprint=MODEL)
    tree.append(LONG)
    append_gists(tree.gist_path(1), gist_header(1), 0, gist_rows(1, 0, 3))
    tree_id = import_tree(tmp_path / "b", io.BytesIO(exported(tree)), "default")
    assert contents(tmp_path / "b" / "trees" / "default" / tree_id) == contents(tmp_path / "a")
    tree.close()


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with closing(make(tmp_path / "a", LONG)) as tree:
        data = exported(tree)
    pid = os.fork()  # the limit stands in for the full disk, and is the child's alone
    if pid == 0:
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            import_tree(tmp_path / "b", io.BytesIO(data), "default")
        except StoreError as error:
            code = 0 if "free disk space" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert list((tmp_path / "b" / "trees").glob("*/*")) == []
