"""GistPages against a plain model of a page table, and the bound that sizes the pool."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.engine.gist_pages import GistPages, PageKey, check_pool_size, pages_needed
from megacontext_vllm.engine.step_work import PageFill
from megacontext_vllm.errors import BudgetError, ConfigError
from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.focus.working_context import Kind, WorkingContext

PATHS = ("a/LOD1.ctx", "a/LOD2.ctx", "b/LOD1.ctx")
NODES = 96
PAGES = 4


class Model:
    """What the device holds: ``content[page][row]`` is the node whose gist lies there."""

    def __init__(self) -> None:
        self.content: list[list[tuple[str, int] | None]] = [[None] * 32 for _ in range(PAGES)]
        self.filled: dict[PageKey, int] = {}
        self.recent: list[PageKey] = []  # the least recently used first

    def apply(self, fill: PageFill) -> None:
        assert fill.start % 32 == fill.offset and fill.start < fill.stop
        assert fill.start // 32 == (fill.stop - 1) // 32, "a fill stays within its page"
        if fill.offset == 0:
            self.content[fill.page] = [None] * 32
        for node in range(fill.start, fill.stop):
            self.content[fill.page][node % 32] = (fill.path, node)


step = st.lists(st.tuples(st.sampled_from(PATHS), st.integers(0, NODES - 1)), max_size=24)
growth = st.dictionaries(st.sampled_from(PATHS), st.integers(0, 40), max_size=3)


@settings(max_examples=150, deadline=None)
@given(steps=st.lists(st.tuples(step, growth), max_size=14))
def test_against_a_plain_model(steps: list[tuple[list[tuple[str, int]], dict[str, int]]]) -> None:
    pages, model = GistPages(PAGES), Model()
    committed = dict.fromkeys(PATHS, 20)
    for asked, grows in steps:
        for path, rows in grows.items():
            committed[path] = min(committed[path] + rows, NODES)
        nodes = [(path, index) for path, index in asked if index < committed[path]]
        keys = list(dict.fromkeys(PageKey(path, index // 32) for path, index in nodes))[: PAGES // 2]
        nodes = [(path, index) for path, index in nodes if PageKey(path, index // 32) in keys]

        resident = set(model.recent)
        rows, fills = pages.place([(path, index, committed[path]) for path, index in nodes])

        # Only what is new is copied: nothing for a resident page whose rows did not grow.
        for fill in fills:
            key = PageKey(fill.path, fill.start // 32)
            assert fill.offset == (model.filled[key] if key in resident else 0)
            assert fill.stop == min(committed[fill.path], (key.index + 1) * 32)
            model.filled[key] = fill.stop - key.index * 32
            model.apply(fill)
        assert len({(fill.path, fill.start // 32) for fill in fills}) == len(fills)
        # Each position reads the gist of its own node, whatever was replaced in this very step.
        for (path, index), row in zip(nodes, rows, strict=True):
            assert model.content[row // 32][row % 32] == (path, index)
        # Least recently used pages made room, never more than was needed.
        model.recent = [key for key in model.recent if key not in keys] + keys
        model.recent = model.recent[-PAGES:]
        assert pages.resident == len(model.recent)
        missed = {PageKey(fill.path, fill.start // 32) for fill in fills if fill.offset == 0}
        assert missed == set(keys) - resident


def test_siblings_share_a_page_and_levels_do_not() -> None:
    pages = GistPages(4)
    rows, fills = pages.place([("t/LOD1.ctx", 33, 70), ("t/LOD1.ctx", 63, 70), ("t/LOD2.ctx", 33, 70)])
    assert rows[0] // 32 == rows[1] // 32 != rows[2] // 32
    assert [row % 32 for row in rows] == [1, 31, 1]
    assert [(fill.path, fill.start, fill.stop, fill.offset) for fill in fills] == [
        ("t/LOD1.ctx", 32, 64, 0),
        ("t/LOD2.ctx", 32, 64, 0),
    ]


def test_a_page_that_grew_is_filled_from_its_first_new_row() -> None:
    pages = GistPages(2)
    (row,), (first,) = pages.place([("f", 40, 45)])
    assert pages.place([("f", 44, 45)])[1] == []
    (later,), (second,) = pages.place([("f", 50, 51)])
    assert (first.start, first.stop, first.offset) == (32, 45, 0)
    assert (second.start, second.stop, second.offset, second.page) == (45, 51, 13, first.page)
    assert row // 32 == later // 32
    assert pages.place([("f", 40, 200)])[1] == [PageFill("f", 51, 64, first.page, 19)]
    assert pages.place([("f", 63, 300)])[1] == []


def test_pages_of_one_call_never_replace_each_other() -> None:
    pages = GistPages(4)
    for path in ("old", "between", "late"):
        pages.place([(path, 0, 32)])
    # "old" is the least recently used, but this very step shows it.
    wanted = [("new", 0, 32), ("other", 0, 32), ("old", 5, 32)]
    rows, fills = pages.place(wanted)
    assert len({row // 32 for row in rows}) == 3
    assert [fill.path for fill in fills] == ["new", "other"]
    assert [fill.path for fill in pages.place([("between", 0, 32)])[1]] == ["between"]


def test_pages_of_the_step_before_are_not_given_away() -> None:
    """The device may still be reading them while the fills of this step are copied."""
    pages = GistPages(3)
    pages.place([("first", 0, 32)])
    (before,), _ = pages.place([("second", 0, 32)])
    rows, _ = pages.place([("third", 0, 32), ("fourth", 0, 32)])
    assert before // 32 not in {row // 32 for row in rows}
    assert pages.place([("second", 0, 32)])[1] == []


def test_pages_of_a_tree_that_was_forgotten_are_filled_anew() -> None:
    pages = GistPages(4)
    pages.place([("a/t/LOD1.ctx", 3, 40), ("a/t2/LOD1.ctx", 3, 40)])
    pages.forget("a/t")
    rows, fills = pages.place([("a/t/LOD1.ctx", 3, 40), ("a/t2/LOD1.ctx", 3, 40)])
    assert [(fill.path, fill.start, fill.stop, fill.offset) for fill in fills] == [("a/t/LOD1.ctx", 0, 32, 0)]
    assert pages.resident == 2 and fills[0].page == rows[0] // 32


def test_nothing_wanted_nothing_done() -> None:
    assert GistPages(1).place([]) == ([], [])


def test_showing_an_uncommitted_row_and_overrunning_the_pool_are_bugs() -> None:
    with pytest.raises(AssertionError, match="committed"):
        GistPages(2).place([("f", 40, 40)])
    with pytest.raises(AssertionError, match="more pages"):
        GistPages(1).place([("f", 0, 64), ("f", 32, 64)])


# ---- the bound ------------------------------------------------------------------------------------------------------


def pages_of(context: WorkingContext, request: int) -> tuple[np.ndarray, np.ndarray]:
    """For each entry of the engine's prompt: its position, and the page it needs (-1 for none), made unique."""
    positions, keys = [], []
    position = 0
    for entry in context.entries:
        if entry.kind is Kind.GIST:
            positions.append(position)
            keys.append((request * 16 + entry.level) * (1 << 32) + entry.index // 32)
        position += entry.cost
    return np.array(positions, np.int64), np.array(keys, np.int64)


def some_utility(generator: np.random.Generator, blocks: int) -> np.ndarray:
    """Needles far apart are what breaks a Working Context into the most pages."""
    utility = np.where(generator.random(blocks) < generator.choice([0.001, 0.02, 0.5]), generator.random(blocks), 0.0)
    return utility.astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_bound_holds_for_real_working_contexts(seed: int) -> None:
    generator = np.random.default_rng(seed)
    requests = int(generator.integers(1, 7))
    contexts = []
    for request in range(requests):
        length = int(generator.choice([5_000, 33_825, 1_057 * 32 + 7, 400_000, 1_082_401]))
        window = int(generator.integers(300, 3000))
        try:
            utility = some_utility(generator, length // 32)
            context = allocate(length, window, utility, head=32, tail=64, gists=True)
        except BudgetError:
            continue
        contexts.append((*pages_of(context, request), context.cost))
    for budget in (16, 64, 512, 2048):
        touched: set[int] = set()
        scheduled = 0
        for positions, keys, cost in contexts:
            # A chunk of each request, as a chunked prefill schedules it: a run of positions, anywhere.
            chunk = int(min(cost, budget - scheduled, generator.integers(1, budget + 1)))
            if chunk <= 0:
                break
            start = int(generator.integers(0, cost - chunk + 1))
            inside = (positions >= start) & (positions < start + chunk)
            touched |= set(keys[inside].tolist())
            scheduled += chunk
        assert 2 * len(touched) <= pages_needed(budget, requests)


def test_the_bound_is_never_more_than_the_entries() -> None:
    assert pages_needed(16, 256) == 2 * 16
    assert pages_needed(31_000, 1) == 2 * (1_000 + 16)


def test_a_pool_too_small_says_how_many_bytes_are_needed() -> None:
    with pytest.raises(ConfigError) as refused:
        check_pool_size(10, 100, page_bytes=32 * 576 * 2)
    message = str(refused.value)
    assert "gist_pool_pages=10" in message and "100 pages" in message and "3,686,400 bytes" in message
    assert "--max-num-batched-tokens" in message
    check_pool_size(100, 100, page_bytes=1)
