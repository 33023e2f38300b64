"""Ingest against real trees, with a worker that really writes the rows it is asked for."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.engine.ingest import TRIES, Ingest
from megacontext_vllm.engine.plan import _check_gists
from megacontext_vllm.engine.step_work import GistJob
from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.durability import NEVER
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gists import append_gists, replace_gists
from megacontext_vllm.tree.nodes import depth, num_nodes
from megacontext_vllm.tree.tree import MegaContextTree

MODEL, NET, OTHER_NET = bytes(range(16)), bytes(range(1, 17)), bytes(range(2, 18))
DIM = 3
LENGTH = 32**3 + 32**2 + 70  # LOD3 exists, and every level has an unfinished block


class Worker:
    """Executes jobs as a worker does, and checks what a worker could not notice."""

    def __init__(self, trees: Iterable[MegaContextTree], net: bytes = NET) -> None:
        self.trees = {str(tree.path): tree for tree in trees}
        self.net = net
        self.made: list[GistJob] = []

    def run(self, jobs: list[GistJob]) -> None:
        for job in jobs:
            tree = self.trees[job.tree_path]
            assert 0 <= job.start < job.stop <= num_nodes(tree.length, job.level)
            if job.level == 1:
                assert job.tokens is not None and job.tokens.shape == (job.stop - job.start, 32)
                np.testing.assert_array_equal(job.tokens.reshape(-1), tree.tokens(job.start * 32, job.stop * 32))
            else:
                assert job.tokens is None
            header = Header(job.level, RowType.FLOAT32, DIM, 0, MODEL, self.net)
            values = np.arange(job.start, job.stop, dtype=np.float32) + 1000 * job.level
            try:
                put = replace_gists if job.again else append_gists
                put(tree.gist_path(job.level), header, job.start, np.repeat(values[:, None], DIM, axis=1))
            except StoreError:
                continue  # as in the product: logged, not committed
            self.made.append(job)


@pytest.fixture
def grow(tmp_path: Path) -> Iterator[Callable[..., MegaContextTree]]:
    """``grow(name, length)``: a new tree of that many tokens."""
    trees = []

    def make(name: str, length: int) -> MegaContextTree:
        tree = MegaContextTree.create(tmp_path / name, tree_id=name, namespace="default", model_fingerprint=MODEL)
        trees.append(tree)
        more(tree, length)
        return tree

    yield make
    for tree in trees:
        tree.close()


def more(tree: MegaContextTree, count: int) -> None:
    start = tree.length
    tree.append((np.arange(start, start + count) % 50_000).astype(np.uint32))


def complete(tree: MegaContextTree, length: int) -> None:
    for level in range(1, depth(length) + 1):
        assert tree.gist_count(level) == num_nodes(length, level)
        with closing(LevelReader(tree.gist_path(level))) as reader:
            rows = reader.rows(0, reader.count)
        np.testing.assert_array_equal(rows[:, 0], np.arange(len(rows)) + 1000 * level)
    assert tree.gist_count(depth(length) + 1) == 0


def drive(ingest: Ingest, worker: Worker, *, late: int = 0, limit: int = 300) -> int:
    """Steps until there is nothing to do; ``late``: steps under way before the first one's output is back."""
    under_way: list[list[GistJob]] = []
    for steps in range(limit):
        committed = {
            (path, level): tree.gist_count(level) for path, tree in worker.trees.items() for level in range(5)[1:]
        }
        jobs = ingest.next_jobs()
        for job in jobs:
            # Children are on disk when a job is scheduled, so that every rank can read them.
            assert job.level == 1 or job.stop * 32 <= committed[job.tree_path, job.level - 1]
        worker.run(jobs)
        under_way.append(jobs)
        if len(under_way) > late:
            ingest.executed(under_way.pop(0))
        if not jobs and not any(under_way):
            return steps
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("late", [0, 1, 2])
def test_every_complete_node_gets_its_gist(grow: Callable[..., MegaContextTree], late: int) -> None:
    tree = grow("a", LENGTH)
    ingest, worker = Ingest(4096, NET), Worker([tree])
    progress = ingest.watch(tree, LENGTH)
    assert not progress.covers(LENGTH) and progress.covers(31)
    drive(ingest, worker, late=late)
    assert progress.covers(LENGTH) and not progress.failed and progress.failures == 0
    complete(tree, LENGTH)
    # Nothing is made twice.
    nodes = [(job.level, n) for job in worker.made for n in range(job.start, job.stop)]
    assert len(nodes) == len(set(nodes)) == sum(num_nodes(LENGTH, level) for level in (1, 2, 3))


def test_covers_is_exact_at_every_level(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 32**2)
    ingest, worker = Ingest(32, NET), Worker([tree])
    progress = ingest.watch(tree, 32**2)
    for step in range(32):
        assert progress.covers(32 * step + 31) and not progress.covers(32 * step + 32)
        jobs = ingest.next_jobs()
        worker.run(jobs)
        ingest.executed(jobs)
    assert progress.covers(32**2 - 1) and not progress.covers(32**2), "LOD2 is still missing"
    drive(ingest, worker)
    assert progress.covers(32**2)


def test_what_another_engine_has_made_is_not_asked_for(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 32**2)
    ingest, worker, other = Ingest(64, NET), Worker([tree]), Worker([tree])
    ingest.watch(tree, 32**2)
    jobs = ingest.next_jobs()
    worker.run(jobs)
    other.run([GistJob(str(tree.path), 1, 2, 20, tree.read_tokens(64, 640).reshape(-1, 32))])
    ingest.executed(jobs)
    assert [(job.level, job.start, job.stop) for job in ingest.next_jobs()] == [(1, 20, 22)]


def test_an_engine_with_another_net_that_was_first(grow: Callable[..., MegaContextTree]) -> None:
    """Both found the tree without gists; what the first one made is not taken for the second one's."""
    tree = grow("a", 32**2 + 70)
    first, second = Ingest(1 << 20, OTHER_NET), Ingest(1 << 20, NET)
    one, other = first.watch(tree, tree.length), second.watch(tree, tree.length)
    jobs = second.next_jobs()
    drive(first, Worker([tree], OTHER_NET))
    worker = Worker([tree])
    worker.run(jobs)
    second.executed(jobs)
    assert one.covers(tree.length) and not one.failed
    assert other.failed and worker.made == []


def test_a_file_that_another_net_has_begun_and_not_written(grow: Callable[..., MegaContextTree]) -> None:
    """Its engine was killed between the header and the first gists."""
    tree = grow("a", LENGTH)
    LevelWriter(tree.gist_path(1), Header(1, RowType.FLOAT32, DIM, 0, MODEL, OTHER_NET), NEVER).close()
    ingest, worker = Ingest(1 << 20, NET), Worker([tree])
    progress = ingest.watch(tree, LENGTH)
    drive(ingest, worker)
    assert progress.covers(LENGTH) and progress.failures == 0
    complete(tree, LENGTH)


def test_the_bound_per_step_holds_over_all_trees(grow: Callable[..., MegaContextTree]) -> None:
    trees = [grow(name, 3000 + 700 * i) for i, name in enumerate("abc")]
    ingest, worker = Ingest(1024 + 31, NET), Worker(trees)
    watched = [ingest.watch(tree, tree.length) for tree in trees]
    assert len(ingest) == 3
    largest = 0
    while not all(progress.covers(progress.length) for progress in watched):
        jobs = ingest.next_jobs()
        nodes = sum(job.stop - job.start for job in jobs)
        assert 0 < nodes <= 32
        largest = max(largest, nodes)
        worker.run(jobs)
        ingest.executed(jobs)
    assert largest == 32
    for tree in trees:
        complete(tree, tree.length)


def test_the_least_step_still_ends(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 1500)
    ingest = Ingest(32, NET)
    ingest.watch(tree, 1500)
    assert drive(ingest, Worker([tree])) == num_nodes(1500, 1) + num_nodes(1500, 2)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_worker_that_writes_nothing_is_given_up(grow: Callable[..., MegaContextTree], late: int) -> None:
    tree = grow("a", 5000)
    ingest = Ingest(1024, NET)
    progress = ingest.watch(tree, 5000)
    under_way: list[list[GistJob]] = []
    executed = 0
    while not progress.failed:
        under_way.append(ingest.next_jobs())
        if len(under_way) > late:
            ingest.executed(under_way.pop(0))
            executed += 1
            assert executed <= TRIES
    assert executed == TRIES and not progress.covers(5000)
    ingest.keep(set())  # what the scheduler does with a tree that nobody waits for
    assert len(ingest) == 0 and ingest.next_jobs() == []
    for jobs in under_way:
        ingest.executed(jobs)


def test_a_fault_that_passes_is_repaired(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 5000)
    ingest, worker = Ingest(1024, NET), Worker([tree])
    progress = ingest.watch(tree, 5000)
    ingest.executed(ingest.next_jobs())  # lost
    lost = ingest.next_jobs()
    assert lost[0].start == 0, "asked again"
    ingest.executed(lost)
    drive(ingest, worker)
    assert progress.covers(5000) and not progress.failed
    complete(tree, 5000)


def test_a_step_lost_among_steps_under_way_is_repaired(grow: Callable[..., MegaContextTree]) -> None:
    """The steps behind a lost one cannot append either; that must not use up all tries."""
    tree = grow("a", 20_000)
    ingest, worker = Ingest(1024, NET), Worker([tree])
    progress = ingest.watch(tree, 20_000)
    lost, behind = ingest.next_jobs(), ingest.next_jobs()
    worker.run(behind)
    assert tree.gist_count(1) == 0
    ingest.executed(lost)
    again = ingest.next_jobs()
    worker.run(again)
    ingest.executed(behind)
    ingest.executed(again)
    drive(ingest, worker, late=1)
    assert progress.covers(20_000) and not progress.failed
    complete(tree, 20_000)


def test_a_tree_that_grows_meanwhile(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 3000)
    ingest, worker = Ingest(1024, NET), Worker([tree])
    progress = ingest.watch(tree, 3000)
    jobs = ingest.next_jobs()
    more(tree, LENGTH - 3000)  # a second request continues the history while the first is ingested
    assert ingest.watch(tree, LENGTH) is progress and len(ingest) == 1
    worker.run(jobs)
    ingest.executed(jobs)
    assert ingest.watch(tree, 3000) is progress and progress.length == LENGTH, "a shorter wish takes nothing back"
    drive(ingest, worker)
    assert progress.covers(3000) and progress.covers(LENGTH)
    complete(tree, LENGTH)


def test_gists_of_another_net_are_refreshed_in_place(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", LENGTH)
    old = Ingest(1 << 20, OTHER_NET)
    old.watch(tree, LENGTH)
    drive(old, Worker([tree], OTHER_NET))
    ingest, worker = Ingest(4096, NET), Worker([tree])
    progress = ingest.watch(tree, LENGTH)
    steps = 0
    while jobs := ingest.next_jobs():
        assert not progress.covers(LENGTH)
        assert sum(job.stop - job.start for job in jobs) <= 4096 // 32 and all(job.again for job in jobs)
        assert ingest.next_jobs() == []  # nothing is asked for twice while it is under way
        assert len(tree.read_gists(1, 0, 1058)) == 1058  # readable throughout
        worker.run(jobs)
        ingest.executed(jobs)
        steps += 1
        if steps == 4:  # the server is restarted
            ingest = Ingest(4096, NET)
            progress = ingest.watch(tree, LENGTH)
    assert progress.covers(LENGTH)
    assert steps > 4
    assert sum(job.stop - job.start for job in worker.made) == 1058 + 33 + 1  # nothing twice, in spite of the restart
    complete(tree, LENGTH)
    for level in (1, 2, 3):
        with closing(LevelReader(tree.gist_path(level))) as reader:
            assert reader.header.gist_fingerprint == NET


@pytest.mark.parametrize("also", [False, True])
def test_a_damaged_last_page_of_gists_is_made_again(grow: Callable[..., MegaContextTree], also: bool) -> None:
    tree = grow("a", 5000)
    ingest, worker = Ingest(1 << 20, NET), Worker([tree])
    progress = ingest.watch(tree, 5000)
    drive(ingest, worker)
    for node in (150, 20)[: 1 + also]:
        with open(tree.gist_path(1), "r+b") as file:
            file.seek(64 + node * 4 * DIM)
            file.write(b"\xff")
    assert _check_gists(tree, [(1, 3), (1, 151)])
    assert not ingest.watch(tree, 5000).covers(5000)
    drive(ingest, worker)
    assert progress.covers(5000)
    complete(tree, 5000)
    assert len(tree.read_gists(1, 0, 156)) == 156


def test_damaged_gists_that_another_process_writes_are_not_shown(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 5000)
    ingest = Ingest(1 << 20, NET)
    ingest.watch(tree, 5000)
    drive(ingest, Worker([tree]))
    with open(tree.gist_path(1), "r+b") as file:
        file.seek(64 + 40 * 4 * DIM)
        file.write(b"\xff")
    reading = MegaContextTree.open(tree.path, model_fingerprint=MODEL, writable=False)
    assert _check_gists(reading, [(1, 3)])
    assert not _check_gists(reading, [(1, 45)])
    reading.close()


def test_a_damaged_page_of_gists_is_made_again(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", 5000)
    ingest, worker = Ingest(1 << 20, NET), Worker([tree])
    progress = ingest.watch(tree, 5000)
    drive(ingest, worker)
    worker.made.clear()
    with open(tree.gist_path(1), "r+b") as file:
        file.seek(64 + 40 * 4 * DIM)
        file.write(b"\xff")
    _check_gists(tree, [(1, 3), (2, 1)])  # others are not touched
    assert ingest.watch(tree, 5000).covers(5000)
    _check_gists(tree, [(1, 45), (2, 1)])
    assert not ingest.watch(tree, 5000).covers(5000)
    drive(ingest, worker)
    assert progress.covers(5000)
    assert [(job.level, job.start, job.stop) for job in worker.made] == [(1, 32, 64)]
    complete(tree, 5000)
    assert len(tree.read_gists(1, 0, 156)) == 156


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("damage", ["header", "cut off"])
def test_damaged_gists_are_dropped_and_made_again(
    grow: Callable[..., MegaContextTree], level: int, damage: str
) -> None:
    tree = grow("a", 5000)
    first = Ingest(1 << 20, NET)
    first.watch(tree, 5000)
    drive(first, Worker([tree]))
    with open(tree.gist_path(level), "r+b") as file:
        if damage == "header":
            file.seek(30)
            file.write(b"\xff\xff\xff")
        else:
            file.truncate(70)
    ingest = Ingest(1 << 20, NET)
    progress = ingest.watch(tree, 5000)
    assert not progress.covers(5000)
    drive(ingest, Worker([tree]))
    assert progress.covers(5000)
    complete(tree, 5000)


def test_resumed_where_an_earlier_process_stopped(grow: Callable[..., MegaContextTree]) -> None:
    tree = grow("a", LENGTH)
    first = Ingest(4096, NET)
    first.watch(tree, LENGTH)
    worker = Worker([tree])
    for _ in range(3):
        jobs = first.next_jobs()
        worker.run(jobs)
        first.executed(jobs)
    counts = {level: tree.gist_count(level) for level in (1, 2)}
    assert counts == {1: 128 * 3, 2: 0}
    second, resumed = Ingest(4096, NET), Worker([tree])
    progress = second.watch(tree, LENGTH)
    drive(second, resumed)
    assert progress.covers(LENGTH)
    complete(tree, LENGTH)
    assert min(job.start for job in resumed.made if job.level == 1) == counts[1], "what was there is not made again"


def test_a_tree_opened_anew_is_followed_through_its_new_handle(grow: Callable[..., MegaContextTree]) -> None:
    """Its last holder went away, and another request opened it before the next step forgot it."""
    tree = grow("a", 5000)
    ingest = Ingest(1024, NET)
    ingest.watch(tree, 5000)
    ingest.executed(ingest.next_jobs())
    tree.close()
    again = MegaContextTree.open(tree.path, model_fingerprint=MODEL, writable=True)
    progress = ingest.watch(again, 5000)
    drive(ingest, Worker([again]))
    assert progress.covers(5000)
    complete(again, 5000)
    again.close()


def test_only_wanted_trees_are_kept(grow: Callable[..., MegaContextTree]) -> None:
    left, right = grow("a", 2000), grow("b", 2000)
    ingest, worker = Ingest(1 << 20, NET), Worker([left, right])
    ingest.watch(left, 2000)
    ingest.watch(right, 2000)
    under_way = ingest.next_jobs()
    ingest.keep({str(right.path)})
    assert len(ingest) == 1
    worker.run(under_way)
    ingest.executed(under_way)  # also of a tree that was forgotten meanwhile
    assert {job.tree_path for job in ingest.next_jobs()} == {str(right.path)}
