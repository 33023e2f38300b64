import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from histories import BASE, MODEL, check, diverging, put

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of


def damage_count(folder: Path) -> None:
    os.truncate(folder / "LOD0.ctx", 200)


def damage_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("{")


@pytest.mark.parametrize("damage", [shutil.rmtree, damage_count, damage_meta])
def test_unusable_candidates_are_skipped(
    library: TreeLibrary, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    assert callable(damage)
    lost = put(library, BASE[:5000])
    good = put(library, diverging(1500, 5000))
    damage(tmp_path / "trees" / "default" / lost)
    with caplog.at_level(logging.WARNING):
        acquired = library.acquire("default", BASE[:5000])
    check(acquired, BASE[:5000])
    assert (acquired.reused, acquired.created) == (1500, True)  # from the good one
    assert lost in caplog.text
    assert lost not in {info.tree_id for info in library.list("default")}
    assert good in {info.tree_id for info in library.list("default")}
    library.release(acquired.tree)


def test_tree_moved_by_hand_is_not_used(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE)
    foreign = tmp_path / "trees" / namespace_of("x")
    shutil.copytree(tmp_path / "trees" / "default", foreign)
    with pytest.raises(StoreError, match="moved or copied"):
        library.get(namespace_of("x"), tree_id)
    assert library.open_trees() == 0


def test_recovery(tmp_path: Path) -> None:
    first = TreeLibrary(tmp_path, MODEL)
    kept, gone = put(first, BASE[:5000]), put(first, BASE[:3000], "abc")
    first.close()
    trees = tmp_path / "trees"
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (trees / "abc" / gone).rename(trees / "abc" / f".{gone}.deleted")  # died while deleting
    hour_ago = time.time() - 4000
    for name, age in (("1" * 32, time.time()), ("2" * 32, hour_ago)):  # died while creating
        (trees / "default" / name).mkdir()
        os.utime(trees / "default" / name, (age, age))
    again = TreeLibrary(tmp_path, MODEL)
    assert sorted(p.name for p in (trees / "default").iterdir()) == sorted(["1" * 32, kept])
    assert list((trees / "abc").iterdir()) == []
    acquired = again.acquire("default", BASE[:6000])
    assert (acquired.tree.tree_id, acquired.reused) == (kept, 5000)
    again.close()
    shutil.rmtree(trees / "default" / kept)
    last = TreeLibrary(tmp_path, MODEL)
    assert last.list("default") == []
    last.close()


def test_full_disk_leaves_nothing_held(tmp_path: Path) -> None:
    library = TreeLibrary(tmp_path, MODEL)
    tree_id = put(library, BASE[:3000])
    library.close()
    # A limit on the size of files stands in for the full disk; it is above what the index needs here.
    script = f"""
import resource, numpy as np
from pathlib import Path
from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.library import TreeLibrary
base = np.random.default_rng(0).integers(0, 150_000, 10_000, dtype=np.uint32)
library = TreeLibrary(Path({str(tmp_path)!r}), {MODEL!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
diverging = np.concatenate([base[:2000], np.zeros(400_000, np.uint32)])
for tokens in (np.concatenate([base[:3000], np.zeros(400_000, np.uint32)]), diverging, np.ones(400_000, np.uint32)):
    try:
        library.acquire("default", tokens)
    except StoreError as error:
        assert "free disk space" in str(error), error
    else:
        raise SystemExit("no error")
    assert library.open_trees() == 0
acquired = library.acquire("default", base[:4000])
assert (acquired.tree.tree_id, acquired.reused, acquired.tree.length) == ({tree_id!r}, 3000, 4000)
library.release(acquired.tree)
assert [info.tree_id for info in library.list("default")] == [{tree_id!r}]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [p.name for p in (tmp_path / "trees" / "default").iterdir()] == [tree_id]


def test_failing_index_leaves_nothing_held(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE[:3000])
    with sqlite3.connect(tmp_path / "index.sqlite") as connection:
        connection.execute("ALTER TABLE trees RENAME COLUMN length TO lost")  # looking up works, recording does not
    connection.close()
    for tokens in (BASE[:3000], BASE[:4000], diverging(2000, 3000), BASE[:10]):
        with pytest.raises(StoreError, match=r"delete index\.sqlite"):
            library.acquire("default", tokens)
        assert library.open_trees() == 0
    assert [p.name for p in (tmp_path / "trees" / "default").iterdir()] == [tree_id]
    library.release(library.get("default", tree_id))


def test_threads(library: TreeLibrary) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        try:
            for _ in range(15):
                tokens = diverging(int(random.integers(0, 4)) * 700, int(random.integers(3000, 6000)))
                acquired = library.acquire("default", tokens)
                check(acquired, tokens)
                (library.discard if random.random() < 0.2 else library.release)(acquired.tree)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert library.open_trees() == 0


HAMMER = """
import sys
from pathlib import Path
import numpy as np
from megacontext_vllm.tree.store.library import TreeLibrary
base = np.arange(10_000, dtype=np.uint32)
random = np.random.default_rng(int(sys.argv[2]))
library = TreeLibrary(Path(sys.argv[1]), bytes(range(16)))
for _ in range(25):
    tokens = base[: random.integers(1000, 10_000)].copy()
    tokens[random.integers(0, 10_000):] += 1
    acquired = library.acquire("default", tokens)
    assert np.array_equal(acquired.tree.tokens(0, len(tokens)), tokens)
    (library.discard if random.random() < 0.2 else library.release)(acquired.tree)
assert library.open_trees() == 0
library.close()
"""


def test_processes_share_a_store(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", HAMMER, str(tmp_path), str(seed)], stderr=subprocess.PIPE, text=True)
        for seed in range(4)
    ]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        assert "Traceback" not in errors


OPENER = """
import sys, time
from pathlib import Path
from megacontext_vllm.tree.store.library import TreeLibrary
for round in range(20):
    time.sleep(max(0.0, float(sys.argv[2]) + round * 0.05 - time.time()))
    TreeLibrary(Path(sys.argv[1]) / str(round), bytes(16)).close()
"""


def test_processes_open_a_new_store_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENER, str(tmp_path), str(time.time() + 2)]  # all wait for the same moments
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(6)]
    for process in processes:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
