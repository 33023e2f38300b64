import functools
import os
import random
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from files.levels import MODEL, die_at_write, forked, killed
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megacontext_vllm.tree.files.columns import Column
from megacontext_vllm.tree.files.header import MIXED, Header, RowType
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count
from megacontext_vllm.tree.gists import (
    append_gists,
    begin_refresh,
    finish,
    gist_versions,
    known_versions,
    mark_damaged,
    newest,
    replace_gists,
    stale,
)
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.refresh import Refresh
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.telemetry import NodeTelemetry
from megacontext_vllm.tree.tree import MegaContextTree, gist_levels

ORDERS = ("eager", "lazy", "hot-first")
DIM = 4
WEIGHTS = np.random.default_rng(0).integers(1, 1000, (BLOCK, DIM))
MOST = 2100  # rows of LOD1; two of LOD3


def net(number: int) -> bytes:
    return bytes([number % 250 + 1]) * 16


def header(level: int, number: int) -> Header:
    return Header(level, RowType.BFLOAT16, DIM, 0, MODEL, net(number))


def path(folder: Path, level: int) -> Path:
    return folder / f"LOD{level}.ctx"


def gists(number: int, level: int, start: int, stop: int, children: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Rows ``[n, DIM]`` that a GistNet would make of ``children`` ``[32 n, DIM]``; LOD1 is made of its indices."""
    salt = net(number)[0] * 7919
    if level == 1:
        values = np.arange(start, stop)[:, None] * 31 + np.arange(DIM) * 101 + salt
    else:
        values = (children.reshape(-1, BLOCK, DIM) * WEIGHTS).sum(axis=1) + salt
    return (values % 65_521).astype(np.uint16)


@functools.lru_cache(maxsize=300)
def expected(number: int, level: int) -> NDArray[np.uint16]:
    """All rows of a level, all made by one net."""
    count = MOST // BLOCK ** (level - 1)
    below = expected(number, level - 1)[: count * BLOCK] if level > 1 else np.empty(0, np.uint16)
    return gists(number, level, 0, count, below)


def rows(folder: Path, level: int, start: int, stop: int) -> NDArray[np.uint16]:
    reader = LevelReader(path(folder, level))
    try:
        return reader.read(start, stop)
    finally:
        reader.close()


def current_net(folder: Path) -> int:
    return (newest(folder) or net(0))[0] - 1


def grow(folder: Path, count: int) -> None:
    """What ingest does: append LOD1, and above it what has all its children current."""
    number = current_net(folder)
    start = read_count(path(folder, 1))
    stop = min(start + count, MOST)
    append_gists(path(folder, 1), header(1, number), start, expected(number, 1)[start:stop])
    for level in (2, 3):
        first = read_count(path(folder, level))
        fresh = ~stale(folder, level - 1)
        ready = fresh[first * BLOCK : len(fresh) // BLOCK * BLOCK].reshape(-1, BLOCK).all(axis=1)
        total = len(ready) if ready.all() else int(ready.argmin())
        if total:
            below = rows(folder, level - 1, first * BLOCK, (first + total) * BLOCK)
            append_gists(
                path(folder, level), header(level, number), first, gists(number, level, first, first + total, below)
            )


def make(folder: Path, nodes: list[tuple[int, int, int]]) -> None:
    """What the worker does with nodes that are offered to it."""
    number = current_net(folder)
    for level, start, stop in nodes:
        below = rows(folder, level - 1, start * BLOCK, stop * BLOCK) if level > 1 else np.empty(0, np.uint16)
        if level > 1:
            assert not stale(folder, level - 1)[start * BLOCK : stop * BLOCK].any(), "made of stale children"
        assert stale(folder, level)[start:stop].all(), "made in vain"
        replace_gists(path(folder, level), header(level, number), start, gists(number, level, start, stop, below))


def check(folder: Path) -> None:
    """Every version is that of the net that made the row; what is not stale is what the newest net makes."""
    known = known_versions(folder)
    for level in gist_levels(folder):
        count = read_count(path(folder, level))
        versions = gist_versions(folder, level, 0, count)
        found = rows(folder, level, 0, count)
        for version in set(versions.tolist()) - {0}:
            these = versions == version
            np.testing.assert_array_equal(found[these], expected(known[version - 1][0] - 1, level)[:count][these])
        fresh = ~stale(folder, level)
        np.testing.assert_array_equal(found[fresh], expected(known[-1][0] - 1, level)[:count][fresh])


def complete(folder: Path, refresh: Refresh, most: int = 200) -> int:
    """Run a refresh to its end; returns the nodes made."""
    total = 0
    while nodes := refresh.next_nodes(most):
        made = sum(stop - start for _, start, stop in nodes)
        assert made <= most
        left = refresh.remaining()
        make(folder, nodes)
        assert refresh.remaining() == left - made
        total += made
    return total


def everything(refresh: Refresh, folder: Path) -> None:
    for level in gist_levels(folder):
        refresh.want(level, np.arange(read_count(path(folder, level))))


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 900)),
    st.tuples(st.just("begin"), st.integers(0, 3)),
    st.tuples(st.just("step"), st.integers(1, 700)),
    st.tuples(st.just("want"), st.integers(0, MOST - 1)),
    st.tuples(st.just("damage"), st.integers(0, MOST - 1)),
    st.tuples(st.just("reopen"), st.sampled_from(ORDERS)),
    st.tuples(st.just("kill"), st.integers(0, 25)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEPS, max_size=20), st.sampled_from(ORDERS))
def test_random_refreshes_and_kills_end_as_if_the_newest_net_had_made_all(
    steps: list[tuple[str, int | str]], order: str
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        grow(folder, 1100)
        refresh = Refresh(folder, order)
        wanted: list[tuple[int, int]] = []
        for what, value in steps:
            if what == "append":
                grow(folder, value)
            elif what == "begin":
                begin_refresh(folder, net(value))
            elif what == "want":
                level = value % 3 + 1
                index = value // BLOCK ** (level - 1)
                wanted.append((level, index))
                refresh.want(level, [index])
            elif what == "damage":
                level = value % 2 + 1
                count = read_count(path(folder, level))
                mark_damaged(folder, level, value % count, value % count + 1)
            elif what == "step":
                make(folder, refresh.next_nodes(value))
            elif what == "reopen":
                refresh, wanted = Refresh(folder, value), []
            else:
                kill_at_write(folder, value)
            check(folder)
        complete(folder, refresh)
        assert refresh.remaining() == 0
        for level, index in wanted:
            assert not stale(folder, level)[index : index + 1].any()
        last = Refresh(folder, "lazy")
        everything(last, folder)
        complete(folder, last)
        assert finish(folder)
        check(folder)
        for level in gist_levels(folder):
            assert not stale(folder, level).any()
            reader = LevelReader(path(folder, level))
            assert reader.header.gist_fingerprint == (newest(folder) or reader.header.gist_fingerprint) != MIXED
            reader.close()
    finally:
        shutil.rmtree(folder)


def kill_at_write(folder: Path, number: int) -> None:
    """Begin, work and finish in a child that is killed at one of its first writes."""

    def work() -> None:
        die_at_write(number)
        begin_refresh(folder, net(current_net(folder) + 1))
        refresh = Refresh(folder, "eager")
        while nodes := refresh.next_nodes(150):
            make(folder, nodes)
        finish(folder)

    status = os.waitpid(forked(work), 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, "the child failed; see the captured output"


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """60 processes that refresh and append without end, each killed within 60 ms; the next one goes on."""
    grow(tmp_path, 1100)
    chance = random.Random(0)

    def work() -> None:
        refresh = Refresh(tmp_path, "eager")
        while True:
            grow(tmp_path, 10)
            while nodes := refresh.next_nodes(300):
                make(tmp_path, nodes)
            assert finish(tmp_path)
            begin_refresh(tmp_path, net((current_net(tmp_path) + 1) % 4))

    for _ in range(60):
        killed(forked(work), chance.random() * 0.06)
        check(tmp_path)
    assert len(known_versions(tmp_path)) > 4, "no refresh was ever completed"
    complete(tmp_path, Refresh(tmp_path, "eager"))
    assert finish(tmp_path)
    check(tmp_path)


def test_readable_throughout(tmp_path: Path) -> None:
    """Rows read while another process refreshes are of the old or of the new net, each as a whole."""
    folder = tmp_path / "tree"
    tree = MegaContextTree.create(folder, tree_id="t", namespace="n", model_fingerprint=MODEL)
    tree.append(np.zeros(1100 * BLOCK, np.uint32))
    grow(folder, 1100)

    def work() -> None:
        refresh = Refresh(folder, "eager")
        for turn in range(1, 1000):
            begin_refresh(folder, net(turn % 2))
            while nodes := refresh.next_nodes(97):
                make(folder, nodes)
            finish(folder)

    child = forked(work)
    seen = set()
    until = time.monotonic() + 3
    chance = random.Random(0)
    try:
        while time.monotonic() < until:
            level = chance.choice((1, 1, 2, 3))
            count = tree.gist_count(level)
            start = chance.randrange(count)
            stop = min(start + chance.randrange(1, 200), count)
            found = tree.read_gists(level, start, stop)
            old, new = (expected(number, level)[start:stop] for number in (0, 1))
            are_old, are_new = (found == old).all(axis=1), (found == new).all(axis=1)
            assert (are_old | are_new).all(), (level, start, np.flatnonzero(~(are_old | are_new)))
            seen.add((bool(are_old.any()), bool(are_new.any())))
    finally:
        killed(child)
        tree.close()
    assert seen == {(True, False), (False, True), (True, True)}


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_makes_all_it_is_asked_for(tmp_path: Path, order: str) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    refresh = Refresh(tmp_path, order)
    if order == "lazy":
        assert refresh.next_nodes(10) == [] and refresh.remaining() == 0
        everything(refresh, tmp_path)
    assert refresh.remaining() == 1100 + 34 + 1
    first = refresh.next_nodes(50)
    assert refresh.next_nodes(50) == first  # until they are made
    assert complete(tmp_path, refresh, 50) == 1100 + 34 + 1
    assert finish(tmp_path)
    check(tmp_path)


def test_eager_goes_up_in_index_order(tmp_path: Path) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    refresh = Refresh(tmp_path, "eager")
    assert refresh.next_nodes(50) == [(1, 0, 32)]  # no siblings parted
    assert refresh.next_nodes(20) == [(1, 0, 20)]
    make(tmp_path, [(1, 0, 20), (1, 40, 1100)])
    assert refresh.next_nodes(2000) == [(1, 20, 40), (2, 2, 34)]
    make(tmp_path, [(1, 20, 40), (2, 2, 34)])
    assert refresh.next_nodes(2000) == [(2, 0, 2)]
    make(tmp_path, [(2, 0, 2)])
    assert refresh.next_nodes(2000) == [(3, 0, 1)]


def test_lazy_makes_what_was_asked_for_and_what_that_needs(tmp_path: Path) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    make(tmp_path, [(1, 64, 96)])
    refresh = Refresh(tmp_path, "lazy")
    refresh.want(2, np.array([2, 5, 70_000]))
    refresh.want(1, [3])
    refresh.want(1, [])
    assert refresh.remaining() == 1 + 32 + 2
    assert refresh.next_nodes(100) == [(1, 3, 4), (1, 160, 192), (2, 2, 3)]
    assert complete(tmp_path, refresh) == 35
    np.testing.assert_array_equal(np.flatnonzero(~stale(tmp_path, 2)), [2, 5])
    refresh.want(3, [0])
    assert complete(tmp_path, refresh) == 1024 - 65 + 30 + 1
    assert not stale(tmp_path, 3).any() and stale(tmp_path, 2)[32:].all()


def test_a_current_node_asks_for_nothing_below_it(tmp_path: Path) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    complete(tmp_path, Refresh(tmp_path, "eager"))
    mark_damaged(tmp_path, 1, 70, 71)
    refresh = Refresh(tmp_path, "lazy")
    refresh.want(2, [2])
    assert refresh.next_nodes(100) == []
    refresh.want(1, [71])
    assert refresh.next_nodes(100) == [(1, 71, 72)]


def test_hot_first_goes_by_count_and_recency_with_what_is_below(tmp_path: Path) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    now = 1_800_000_000
    with NodeTelemetry(tmp_path, clock=lambda: now) as telemetry:
        telemetry.note_access(1, [500] * 3 + [700])
        telemetry.note_access(2, [9] * 10)
    with NodeTelemetry(tmp_path, clock=lambda: now - 10 * 86_400) as telemetry:
        telemetry.note_access(1, [900] * 20)  # more often, but long ago
    refresh = Refresh(tmp_path, "hot-first")
    order = []
    for _ in range(36):
        (node,) = refresh.next_nodes(1)
        make(tmp_path, [node])
        order.append(node)
    below = [(1, index, index + 1) for index in range(288, 320)]
    assert order == [*below, (2, 9, 10), (1, 500, 501), (1, 700, 701), (1, 900, 901)]
    assert refresh.next_nodes(40) == [(1, 0, 40)]  # never accessed: by index


def test_without_or_with_damaged_telemetry_hot_first_does_all_the_same(tmp_path: Path) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    with Column(tmp_path, 1, "access_count", np.float32, writable=True) as column:  # of another dtype
        column.fill(0, 1100, np.nan)
    assert complete(tmp_path, Refresh(tmp_path, "hot-first"), 300) == 1135


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_below_a_sealed_span_is_left_out(tmp_path: Path, order: str) -> None:
    grow(tmp_path, 1100)
    SealedSpans([SealedSpan(2, 4, "compacted")]).save(tmp_path)
    begin_refresh(tmp_path, net(1))
    refresh = Refresh(tmp_path, order)
    everything(refresh, tmp_path)
    assert refresh.remaining() == 1135 - 33
    total = 0
    while nodes := refresh.next_nodes(300):
        for level, start, stop in nodes:
            assert not (level == 1 and start < 160 and stop > 128)
            assert not (level == 2 and start <= 4 < stop)
            total += stop - start
        make(tmp_path, nodes)
    assert total == 1135 - 33
    assert not stale(tmp_path, 3).any()  # made of the old gist of the span: there is no other
    assert finish(tmp_path)


def test_nodes_wait_for_children_that_are_still_to_be_appended(tmp_path: Path) -> None:
    grow(tmp_path, 1100)
    begin_refresh(tmp_path, net(1))
    for name in ("LOD1.ctx", "LOD1.crc"):
        (tmp_path / name).unlink()
    refresh = Refresh(tmp_path, "eager")
    assert refresh.next_nodes(10) == [] and refresh.remaining() == 35
    rest = expected(1, 1)[:40]
    append_gists(path(tmp_path, 1), header(1, 1), 0, rest)
    assert refresh.next_nodes(10) == [(2, 0, 1)]


def test_a_step_of_a_tree_of_100_million_tokens(tmp_path: Path) -> None:
    """Half of LOD1 done, in the most expensive order: some tens of milliseconds, far below the work it hands out."""
    count = 100_000_000 // BLOCK
    for level in (1, 2, 3, 4):
        append_gists(
            path(tmp_path, level),
            Header(level, RowType.BFLOAT16, 1, 0, MODEL, net(0)),
            0,
            np.zeros((count // BLOCK ** (level - 1), 1), np.uint16),
        )
    began = time.perf_counter()
    begin_refresh(tmp_path, net(1))
    print(f"begin: {(time.perf_counter() - began) * 1e3:.1f} ms")
    with Column(tmp_path, 1, "version", np.uint16, writable=True) as column:
        column.fill(0, count // 2, 2)
    with NodeTelemetry(tmp_path) as telemetry:
        telemetry.note_access(1, np.arange(count // 4, count, 7))
    for order in ORDERS:
        refresh = Refresh(tmp_path, order)
        refresh.want(3, range(1500, 2500))
        took = []
        for _ in range(3):
            began = time.perf_counter()
            assert sum(stop - start for _, start, stop in refresh.next_nodes(4096)) > 4000
            took.append(time.perf_counter() - began)
        print(f"{order}: {took[0] * 1e3:.1f} ms, then {min(took) * 1e3:.1f} ms")
        assert min(took) < 1
