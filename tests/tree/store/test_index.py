import sqlite3
import threading
from pathlib import Path

import pytest

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.index import TreeIndex, TreeInfo, read_last_accesses

MODEL, OTHER_MODEL = bytes(16), bytes(range(16))
CHAIN = [bytes([k]) * 16 for k in range(9)]


@pytest.fixture
def index(tmp_path: Path) -> TreeIndex:
    return TreeIndex(tmp_path / "index.sqlite", MODEL)


def test_deepest_anchor_for_every_chain_length(index: TreeIndex) -> None:
    for stored in range(len(CHAIN) + 1):
        index.record("default", "t", stored * 1024, 0.0, CHAIN[:stored])
        for asked in range(len(CHAIN) + 1):
            assert index.deepest("default", CHAIN[:asked]) == min(stored, asked)
            assert index.deepest("abc", CHAIN[:asked]) == 0


def test_a_chain_is_recorded_again_after_the_tree_was_forgotten(index: TreeIndex) -> None:
    index.record("default", "a", 3072, 0.0, CHAIN[:3])
    index.record("default", "a", 5120, 0.0, CHAIN[:5])  # adds the last two only, and must not lose any
    assert [index.with_anchor("default", value, 9) for value in CHAIN[:6]] == [["a"]] * 5 + [[]]
    index.record("default", "b", 2048, 0.0, CHAIN[:2])  # what another tree has is not what this one has
    assert [len(index.with_anchor("default", value, 9)) for value in CHAIN[:3]] == [2, 2, 1]
    index.remove("default", "a")
    index.record("default", "a", 5120, 0.0, CHAIN[:5])
    assert index.deepest("default", CHAIN) == 5


def test_candidates_are_the_last_used_first_and_limited(index: TreeIndex) -> None:
    for name in ("a", "b", "c"):
        index.record("default", name, 1024, 0.0, CHAIN[:1])
    index.record("default", "a", 1024, 0.0)
    assert index.with_anchor("default", CHAIN[0], 2) == ["a", "c"]
    assert index.with_anchor("default", CHAIN[1], 2) == []


def test_record_updates_and_remove_forgets(index: TreeIndex) -> None:
    index.record("default", "a", 10, 5.0, CHAIN)
    first = index.trees("default")[0]
    index.record("default", "a", 20, 99.0)
    second = index.trees("default")[0]
    assert (second.tree_id, second.length, second.created) == ("a", 20, 5.0)
    assert second.last_access >= first.last_access
    index.remove("default", "b")
    index.remove("abc", "a")
    assert index.keys() == {("default", "a")}
    index.remove("default", "a")
    assert index.trees("default") == []
    assert index.deepest("default", CHAIN) == 0


def test_models_do_not_see_each_other(index: TreeIndex, tmp_path: Path) -> None:
    other = TreeIndex(tmp_path / "index.sqlite", OTHER_MODEL)
    index.record("default", "a", 1024, 0.0, CHAIN)
    assert other.deepest("default", CHAIN) == 0
    assert other.with_anchor("default", CHAIN[0], 9) == []
    assert other.trees("default") == []
    other.remove("default", "a")
    assert index.deepest("default", CHAIN) == len(CHAIN)


def test_threads_share_it(index: TreeIndex) -> None:
    def work(name: str) -> None:
        for _ in range(20):
            index.record("default", name, 1024, 0.0, CHAIN)
            assert index.deepest("default", CHAIN) == len(CHAIN)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index.trees("default")) == 4


def test_last_accesses_are_read_without_a_trace(index: TreeIndex, tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    other = TreeIndex(path, OTHER_MODEL)
    index.record("default", "a", 1024, 5.0)
    other.record("abc", "b", 1024, 5.0)
    expected = {
        ("default", "a"): index.trees("default")[0].last_access,
        ("abc", "b"): other.trees("abc")[0].last_access,
    }
    assert read_last_accesses(path) == expected  # while others write
    index.close()
    other.close()
    files = set(tmp_path.iterdir())
    assert read_last_accesses(path) == expected
    assert read_last_accesses(tmp_path / "absent.sqlite") == {}
    assert set(tmp_path.iterdir()) == files
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=r"index\.sqlite cannot be read"):
        read_last_accesses(path)
    assert set(tmp_path.iterdir()) == files


def test_unreadable_index_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    index = TreeIndex(path, MODEL)
    index.record("default", "a", 1, 0.0)
    assert "moved aside" in caplog.text
    assert (tmp_path / "index.sqlite.damaged").exists()
    index.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert TreeIndex(path, MODEL).trees("default") == []


def test_failure_is_a_store_error(index: TreeIndex, tmp_path: Path) -> None:
    index.close()
    with pytest.raises(StoreError, match="index"):
        index.trees("default")
    with pytest.raises(StoreError, match="index"):
        TreeIndex(tmp_path / "absent" / "index.sqlite", MODEL)


SCHEMA_1 = """
CREATE TABLE trees(
    model BLOB, namespace TEXT, tree_id TEXT, length INTEGER, created REAL, last_access REAL,
    PRIMARY KEY(model, namespace, tree_id)) WITHOUT ROWID;
CREATE TABLE anchors(
    model BLOB, namespace TEXT, hash BLOB, tree_id TEXT, length INTEGER,
    PRIMARY KEY(model, namespace, hash, tree_id)) WITHOUT ROWID;
CREATE INDEX anchors_of_tree ON anchors(model, namespace, tree_id);
PRAGMA user_version = 1;
"""


def test_an_index_of_schema_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(SCHEMA_1)
    connection.execute("INSERT INTO trees VALUES(?, 'default', 'a', 2048, 5.0, 77.0)", (MODEL,))
    connection.execute("INSERT INTO anchors VALUES(?, 'default', ?, 'a', 1024)", (MODEL, CHAIN[0]))
    connection.commit()
    connection.close()
    for _ in range(2):
        index = TreeIndex(path, MODEL)
        assert index.trees("default") == [TreeInfo("a", 2048, 5.0, 77.0, 0, None, False)]
        assert index.deepest("default", CHAIN) == 1
        index.close()
    index = TreeIndex(path, MODEL)
    assert index.label("default", "a", "n", True)
    index.record("default", "b", 10, 5.0)
    assert not index.label("default", "b", "n", False)
    assert (tmp_path / "index.sqlite.damaged").exists() is False
    index.close()


def test_labels(index: TreeIndex, tmp_path: Path) -> None:
    other = TreeIndex(tmp_path / "index.sqlite", OTHER_MODEL)
    for one in (index, other):
        one.record("default", "a", 10, 0.0, size=100)
        one.record("abc", "a", 10, 0.0, size=10)
        assert one.label("default", "a", "n", False)  # names of another model, or namespace, do not collide
        assert one.label("abc", "a", "n", True)
    index.record("default", "b", 10, 0.0, size=1)
    assert not index.label("default", "b", "n", True)
    assert index.label("default", "a", None, False)
    assert index.label("default", "b", "n", True)
    assert (index.named("default", "n"), other.named("default", "n")) == ("b", "a")
    index.record("default", "b", 20, 0.0)  # keeps name, pin and size
    info = next(info for info in index.trees("default") if info.tree_id == "b")
    assert (info.length, info.bytes, info.name, info.pinned) == (20, 1, "n", True)
    assert index.totals() == {"default": (2, 30, 101), "abc": (1, 10, 10)}
    assert index.store_bytes() == 221
    assert {(row.model, row.namespace, row.tree_id) for row in index.unpinned()} == {
        (MODEL, "default", "a"),
        (OTHER_MODEL, "default", "a"),
    }


def test_anchors_can_be_added_from_the_middle_on(index: TreeIndex) -> None:
    index.record("default", "a", 3072, 0.0, CHAIN[:3])
    index.record("default", "a", 9216, 0.0, CHAIN[3:], first=3)
    assert index.deepest("default", CHAIN) == 9
    with index._transaction() as sql:
        assert sql.execute("SELECT hash, length FROM anchors ORDER BY length").fetchall() == [
            (value, 1024 * (k + 1)) for k, value in enumerate(CHAIN)
        ]


def test_the_last_used_of_many_with_one_anchor(index: TreeIndex) -> None:
    for k in range(700):
        index.record("default", f"{k:03}", 1024, 0.0, CHAIN[:1], used=float(k % 2 * 1000 + k))
    index.record("default", "unrelated", 1024, 0.0, used=1e9)
    found = index.with_anchor("default", CHAIN[0], 64)
    assert found == [f"{k:03}" for k in range(699, 699 - 128, -2)]
