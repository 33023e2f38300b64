"""What processes that died left in a store, and what those that live are still at."""

import io
import os
import signal
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from archives import archive_of
from histories import BASE, MODEL, diverging, put

from megacontext_vllm.tree.store.archive_import import import_tree
from megacontext_vllm.tree.store.library import TreeLibrary


class Halting(io.BytesIO):
    """An archive that stops coming after some bytes, until it is told to go on."""

    def __init__(self, data: bytes, stop_at: int) -> None:
        super().__init__(data)
        self.stop_at = stop_at
        self.reached, self.go_on = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= self.stop_at:
            self.reached.set()
            self.go_on.wait(60)
        return super().read(size)


def entries(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "trees").glob("*/*"))


def test_an_import_under_way_is_left_alone(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a", BASE)
    file = Halting(archive, 20_000)
    ids: list[str] = []
    thread = threading.Thread(target=lambda: ids.append(import_tree(tmp_path / "b", file, "default")))
    thread.start()
    assert file.reached.wait(60)
    with closing(TreeLibrary(tmp_path / "b", MODEL)) as library:
        assert library.list("default") == []
        assert [name[:8] for name in entries(tmp_path / "b")] == [".import-"]
        file.go_on.set()
        thread.join()
        assert entries(tmp_path / "b") == ids == ["a" * 32]
        acquired = library.acquire("default", BASE)
        assert (acquired.tree.tree_id, acquired.reused) == (ids[0], 10_000)


def test_what_a_killed_import_left_is_cleared(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a", BASE)
    for stop_at in (1024, 20_000, len(archive) - 1024):
        pid = os.fork()
        if pid == 0:
            file = Halting(archive, stop_at)
            threading.Thread(target=lambda f=file: (f.reached.wait(60), os.kill(os.getpid(), signal.SIGKILL))).start()
            import_tree(tmp_path / "b", file, "default")
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        left = entries(tmp_path / "b") if (tmp_path / "b").exists() else []
        assert all(name.startswith(".import-") for name in left)
        TreeLibrary(tmp_path / "b", MODEL).close()
        assert entries(tmp_path / "b") == []
    assert import_tree(tmp_path / "b", io.BytesIO(archive), "default") == "a" * 32


def test_a_tree_placed_but_not_indexed_is_found_when_the_store_is_opened(tmp_path: Path) -> None:
    """As when the process dies, or the index fails, right after the rename."""
    archive = archive_of(tmp_path / "a", BASE)
    tree_id = import_tree(tmp_path / "b", io.BytesIO(archive), "default")
    with closing(TreeLibrary(tmp_path / "b", MODEL)) as library:
        library._index.remove("default", tree_id)
    with closing(TreeLibrary(tmp_path / "b", MODEL)) as library:
        acquired = library.acquire("default", BASE)
        assert (acquired.tree.tree_id, acquired.reused) == (tree_id, 10_000)
        assert library.list("default")[0].bytes >= 40_000


def test_an_adopted_tree_is_as_old_as_its_last_token(library: TreeLibrary, tmp_path: Path) -> None:
    old, new = put(library, BASE[:2000]), put(library, diverging(500, 2000))
    library.close()
    (tmp_path / "index.sqlite").unlink()
    week_ago = time.time() - 7 * 86_400
    os.utime(tmp_path / "trees" / "default" / old / "LOD0.ctx", (week_ago, week_ago))
    with closing(TreeLibrary(tmp_path, MODEL)) as again:
        assert [info.tree_id for info in again.list("default")] == [new, old]
        assert again.list("default")[1].last_access == pytest.approx(week_ago)


def test_a_tree_with_damaged_tokens_is_adopted_up_to_the_damage(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE)
    library.close()
    (tmp_path / "index.sqlite").unlink()
    with (tmp_path / "trees" / "default" / tree_id / "LOD0.ctx").open("r+b") as file:
        file.seek(64 + 4 * 5000)
        file.write(b"????")
    with closing(TreeLibrary(tmp_path, MODEL)) as again:
        acquired = again.acquire("default", BASE)
        assert (acquired.reused, acquired.created) == (4096, True)
        np.testing.assert_array_equal(acquired.tree.read_tokens(0, 10_000), BASE)


def test_trees_of_an_old_index_get_their_size(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE)
    library._index.resize("default", tree_id, 0)
    with closing(TreeLibrary(tmp_path, MODEL)) as again:
        assert again.stats().bytes >= 40_000


def test_discard_leaves_what_another_process_reads(library: TreeLibrary, tmp_path: Path) -> None:
    acquired = library.acquire("default", BASE[:3000])
    reader = TreeLibrary(tmp_path, MODEL)
    held = reader.get("default", acquired.tree.tree_id)
    library.discard(acquired.tree)
    assert library.open_trees() == 0
    np.testing.assert_array_equal(held.read_tokens(0, 3000), BASE[:3000])
    assert [info.tree_id for info in library.list("default")] == [held.tree_id]
    reader.discard(held)
    assert entries(tmp_path) == []
    assert library.list("default") == []
    reader.close()
