import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from histories import BASE, MODEL, OTHER_MODEL, diverging, put

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.store.retention import Clock, RetentionPolicy, RetentionReport, enforce

DAY = 86_400.0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[TreeIndex]:
    with closing(TreeIndex(tmp_path / "index.sqlite", MODEL)) as made:
        yield made


def history(number: int, length: int = 2000) -> np.ndarray:
    return np.random.default_rng(1000 + number).integers(0, 150_000, length, dtype=np.uint32)


def used(index: TreeIndex, days_ago: float, tree_id: str, namespace: str = "default") -> None:
    """Set a last use, as if time had passed."""
    with index._transaction() as sql:
        sql.execute(
            "UPDATE trees SET last_access = ? WHERE namespace = ? AND tree_id = ?",
            (time.time() - days_ago * DAY, namespace, tree_id),
        )


def run(store: Path, index: TreeIndex, **policy: float) -> RetentionReport:
    return enforce(store, index, RetentionPolicy(**policy), Clock())  # type: ignore[arg-type]


def folders(store: Path) -> set[str]:
    return {path.name for path in (store / "trees").glob("*/*")}


def log(store: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (store / "log" / "retention.jsonl").read_text().splitlines()]


def test_by_age(library: TreeLibrary, index: TreeIndex, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees = [put(library, history(k)) for k in range(4)]
    for days_ago, tree_id in zip((5, 20, 9.9, 10.1), trees):
        used(index, days_ago, tree_id)
    library.rename("default", trees[1], "the old one")
    with caplog.at_level(logging.INFO):
        report = run(tmp_path, index, max_age_days=10)
    assert report.deleted == [("default", trees[1]), ("default", trees[3])]  # the oldest first
    assert report.skipped == {}
    assert folders(tmp_path) == {trees[0], trees[2]}
    assert {info.tree_id for info in library.list("default")} == {trees[0], trees[2]}
    assert trees[1] in caplog.text and "not used" in caplog.text
    lines = log(tmp_path)
    assert [line["tree_id"] for line in lines] == [trees[1], trees[3]]
    assert lines[0]["name"] == "the old one"
    assert (lines[0]["reason"], lines[0]["tokens"], lines[0]["namespace"]) == ("age", 2000, "default")
    assert report.freed == sum(int(str(line["bytes"])) for line in lines) > 2 * 8000
    assert run(tmp_path, index, max_age_days=10).deleted == []


def test_by_bytes_over_all_models_and_namespaces(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    other = TreeLibrary(tmp_path, OTHER_MODEL)
    a, b = put(library, history(0)), put(library, history(1), "abc")
    c, d = put(other, history(2)), put(other, history(3), "abc")
    for days_ago, namespace, tree_id in ((3, "default", a), (1, "abc", b), (2, "default", c), (4, "abc", d)):
        used(index, days_ago, tree_id, namespace)
    each = index.store_bytes() // 4
    assert run(tmp_path, index, max_bytes=4 * each + 100).deleted == []
    assert run(tmp_path, index, max_bytes=2 * each).deleted == [("abc", d), ("default", a)]
    assert folders(tmp_path) == {b, c}
    assert [info.tree_id for info in other.list("default")] == [c]
    assert index.store_bytes() <= 2 * each
    assert [line["reason"] for line in log(tmp_path)] == ["bytes", "bytes"]
    assert log(tmp_path)[0]["model_fingerprint"] == OTHER_MODEL.hex()
    other.close()


def test_no_more_than_needed_and_no_more_than_allowed(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    trees = [put(library, history(k)) for k in range(6)]
    for k, tree_id in enumerate(trees):
        used(index, 10 - k, tree_id)
    each = index.store_bytes() // 6
    assert run(tmp_path, index, max_bytes=6 * each - 1).deleted == [("default", trees[0])]
    report = enforce(tmp_path, index, RetentionPolicy(max_bytes=0), Clock(), most=2)
    assert report.deleted == [("default", trees[1]), ("default", trees[2])]
    assert len(run(tmp_path, index, max_bytes=0).deleted) == 3
    assert folders(tmp_path) == set()


def test_trees_in_use_and_pinned_ones_stay(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    trees = [put(library, history(k)) for k in range(3)]
    for k, tree_id in enumerate(trees):
        used(index, 10 - k, tree_id)
    library.pin("default", trees[0], True)
    held = library.get("default", trees[1])
    report = run(tmp_path, index, max_bytes=0, max_age_days=1)
    assert report.deleted == [("default", trees[2])]
    assert list(report.skipped) == [("default", trees[1])]
    assert "in use" in report.skipped["default", trees[1]]
    library.release(held)
    library.pin("default", trees[0], False)
    used(index, 10, trees[0])
    assert len(run(tmp_path, index, max_bytes=0).deleted) == 2


HOLDER = """
import sys
from pathlib import Path
from megacontext_vllm.tree.store.library import TreeLibrary
library = TreeLibrary(Path(sys.argv[1]), bytes(range(16)))
tree = library.get("default", sys.argv[2])
print(tree.length, flush=True)
sys.stdin.readline()
print(int(tree.read_tokens(0, tree.length).sum()))
library.close()
"""


def test_a_tree_held_in_another_process_stays(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    kept, gone = put(library, history(0)), put(library, history(1))
    held = library.get("default", kept)  # so that the other process is only a reader
    command = [sys.executable, "-c", HOLDER, str(tmp_path), kept]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "2000\n"
    library.release(held)
    report = run(tmp_path, index, max_bytes=0)
    assert (report.deleted, list(report.skipped)) == ([("default", gone)], [("default", kept)])
    process.stdin.write("\n")
    process.stdin.close()
    assert int(process.stdout.read()) == int(history(0).sum())
    process.wait()
    assert run(tmp_path, index, max_bytes=0).deleted == [("default", kept)]


def test_a_pin_that_the_index_does_not_know_counts(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    tree_id, damaged = put(library, history(0)), put(library, history(1))
    library.pin("default", tree_id, True)
    index.label("default", tree_id, None, False)
    (tmp_path / "trees" / "default" / damaged / "meta.json").write_text("{")
    report = run(tmp_path, index, max_bytes=0)
    assert report.deleted == []
    assert "pinned" in report.skipped["default", tree_id]
    assert "pinned cannot be read" in report.skipped["default", damaged]


def test_trees_that_vanished_are_forgotten(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    tree_id = put(library, history(0))
    (tmp_path / "trees" / "default" / tree_id).rename(tmp_path / "elsewhere")
    report = run(tmp_path, index, max_bytes=0)
    assert (report.deleted, report.skipped) == ([], {})
    assert library.list("default") == []


def test_last_use_never_goes_back(library: TreeLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    tree_id = put(library, history(0))
    before = library.list("default")[0].last_access
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000 * DAY)
    assert put(library, history(0)) == tree_id
    assert library.list("default")[0].last_access == before
    monkeypatch.setattr(time, "time", lambda: now + 5)
    put(library, history(0))
    assert library.list("default")[0].last_access == now + 5


def test_a_clock_that_jumps_ahead_deletes_nothing(
    library: TreeLibrary, index: TreeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    young, old = put(library, history(0)), put(library, history(1))
    used(index, 20, old)
    clock = Clock()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000 * DAY)
    report = enforce(tmp_path, index, RetentionPolicy(max_age_days=10), clock)
    assert report.deleted == [("default", old)]
    assert folders(tmp_path) == {young}


def test_a_clock_that_jumps_back_deletes_nothing(
    library: TreeLibrary, index: TreeIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(library, history(0)), put(library, history(1))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1000 * DAY)
    for clock in (Clock(), Clock()):
        assert enforce(tmp_path, index, RetentionPolicy(max_age_days=10), clock).deleted == []
    assert len(folders(tmp_path)) == 2


def test_use_by_this_process_counts_whatever_the_clock_said(
    library: TreeLibrary, index: TreeIndex, tmp_path: Path
) -> None:
    """Its timestamp is from before the clock was set right; the monotonic clock knows better."""
    mine, other = put(library, history(0)), put(library, history(1))
    used(index, 30, mine)
    used(index, 20, other)
    uses = {("default", mine): time.monotonic() - 60}
    report = enforce(tmp_path, index, RetentionPolicy(max_age_days=10), Clock(), lambda: uses)
    assert report.deleted == [("default", other)]
    long_ago = {("default", mine): time.monotonic() - 11 * DAY}
    report = enforce(tmp_path, index, RetentionPolicy(max_age_days=10), Clock(), lambda: long_ago)
    assert report.deleted == [("default", mine)]


def test_a_time_of_use_in_the_future_counts_as_now(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    future, now = put(library, history(0)), put(library, history(1))
    used(index, -1000, future)
    used(index, 0.01, now)
    assert run(tmp_path, index, max_age_days=1).deleted == []
    assert run(tmp_path, index, max_bytes=index.store_bytes() - 1).deleted == [("default", now)]


def test_the_library_keeps_to_its_policy(tmp_path: Path) -> None:
    with closing(TreeLibrary(tmp_path, MODEL)) as unbounded:
        trees = [put(unbounded, history(k)) for k in range(5)]
        each = unbounded.stats().bytes // 5
    assert not (tmp_path / "log").exists()
    with closing(TreeLibrary(tmp_path, MODEL, RetentionPolicy(max_bytes=3 * each))) as library:
        assert {info.tree_id for info in library.list("default")} == set(trees[2:])  # on opening
        acquired = library.acquire("default", history(7))
        second = library.acquire("default", history(8))
        assert library.stats().trees == 5
        library.release(acquired.tree)  # makes room, but not of what is held
        remaining = {info.tree_id for info in library.list("default")}
        assert {acquired.tree.tree_id, second.tree.tree_id} <= remaining and len(remaining) == 3
        library.release(second.tree)
        assert library.stats().bytes <= 3 * each
        put(library, diverging(500, 3000))
        assert library.stats().bytes <= 3 * each
        assert folders(tmp_path) == {info.tree_id for info in library.list("default")}
    assert [line["tree_id"] for line in log(tmp_path)][:2] == trees[:2]


def test_the_tree_just_released_goes_last(tmp_path: Path) -> None:
    with closing(TreeLibrary(tmp_path, MODEL, RetentionPolicy(max_bytes=1))) as library:
        first, second = library.acquire("default", history(0)), library.acquire("default", history(1))
        library.release(first.tree)
        assert folders(tmp_path) == {second.tree.tree_id}
        library.release(second.tree)
        assert folders(tmp_path) == set()


def test_a_full_store_of_pinned_trees_goes_on_working(tmp_path: Path) -> None:
    with closing(TreeLibrary(tmp_path, MODEL, RetentionPolicy(max_bytes=1))) as library:
        for k in range(3):
            acquired = library.acquire("default", history(k))
            library.pin("default", acquired.tree.tree_id, True)
            library.release(acquired.tree)
        assert library.stats().trees == 3


def test_the_log_is_begun_anew_when_it_is_large(library: TreeLibrary, index: TreeIndex, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with (tmp_path / "log" / "retention.jsonl").open("wb") as file:
        file.truncate(17 << 20)
    put(library, history(0))
    run(tmp_path, index, max_bytes=0)
    assert len(log(tmp_path)) == 1
    assert (tmp_path / "log" / "retention.jsonl.1").stat().st_size == 17 << 20


@pytest.mark.parametrize("policy", [{"max_bytes": -1}, {"max_age_days": -0.1}, {"max_age_days": float("nan")}])
def test_bounds_that_make_no_sense(policy: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="retention by"):
        RetentionPolicy(**policy)  # type: ignore[arg-type]


def test_no_policy_deletes_nothing(tmp_path: Path, library: TreeLibrary, index: TreeIndex) -> None:
    tree_id = put(library, BASE)
    used(index, 10_000, tree_id)
    assert enforce(tmp_path, index, RetentionPolicy(), Clock()).deleted == []
    with closing(TreeLibrary(tmp_path, MODEL)) as again:
        assert [info.tree_id for info in again.list("default")] == [tree_id]
