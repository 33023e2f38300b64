"""The Focus Allocator: invariants over random histories, edge cases, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.errors import BudgetError
from megacontext_vllm.focus.allocator import allocate, raw_utility
from megacontext_vllm.focus.working_context import Kind, WorkingContext
from megacontext_vllm.tree.nodes import BLOCK, span


def utilities(length: int, seed: int, flavour: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blocks = length // BLOCK
    if flavour == "zero":
        return np.zeros(blocks, dtype=np.float32)
    if flavour == "equal":
        return np.full(blocks, 0.5, dtype=np.float32)
    if flavour == "sparse":
        return (rng.random(blocks) * (rng.random(blocks) < 0.02)).astype(np.float32)
    return (rng.random(blocks) * 2 - 1).astype(np.float32)


def shown(context: WorkingContext) -> list[int]:
    return [entry.index for entry in context.entries if entry.kind is Kind.RAW]


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(0, 200_000),
    window=st.integers(0, 40_000) | st.integers(0, 3_000),
    head=st.integers(0, 500),
    tail=st.integers(0, 3_000),
    gists=st.booleans(),
    gap_cost=st.integers(0, 40),
    seed=st.integers(0, 99),
    flavour=st.sampled_from(["zero", "equal", "sparse", "signed"]),
)
def test_invariants(
    length: int, window: int, head: int, tail: int, gists: bool, gap_cost: int, seed: int, flavour: str
) -> None:
    utility = utilities(length, seed, flavour)
    blocks = length // BLOCK
    first = min(-(-head // BLOCK), blocks)
    stop = max((length - tail) // BLOCK if tail < length else 0, first)
    pinned = length - (stop - first) * BLOCK
    try:
        context = allocate(length, window, utility, head=head, tail=tail, gists=gists, gap_cost=gap_cost)
    except BudgetError:
        # 31 nodes on either side of each of the levels 1 to 3, and what lies between, cannot exceed 217 here.
        assert length > window
        assert pinned + (217 if gists else gap_cost) > window
        return
    context.check()
    assert (context.length, context.window) == (length, window)
    kinds = {entry.kind for entry in context.entries}
    assert not kinds & ({Kind.GAP} if gists else {Kind.GIST})
    if length <= window:
        assert kinds <= {Kind.RAW}
        assert context.cost == length
    raw = set(shown(context))
    assert raw >= {*range(first), *range(stop, -(-length // BLOCK))}, "pinned parts are raw"
    for entry in context.entries:
        assert (entry.reason == "head") == (entry.index < first and entry.kind is Kind.RAW)
        assert (entry.reason == "tail") == (entry.index >= stop and entry.level == 1 and entry.kind is Kind.RAW)
        assert entry.reason != "lens" or utility[entry.index] > 0, "recency decides where utility does not"
        if entry.start // BLOCK < blocks:
            assert entry.score == utility[entry.start // BLOCK : entry.end // BLOCK].max()
    if len(raw) * BLOCK < length:
        slack = context.window - context.cost
        # Without gists one more block costs at most 32 and a marker; with gists at most a path down from level 3.
        assert slack < (3 * (BLOCK - 1) if gists else BLOCK + gap_cost), "budget is used up"


@pytest.mark.parametrize("gists", [False, True])
def test_deterministic_and_ties_go_to_the_lower_index(gists: bool) -> None:
    length = 64 * BLOCK
    utility = np.zeros(64, dtype=np.float32)
    utility[[40, 12, 50]] = 0.5
    context = allocate(length, 320, utility, head=32, tail=32, gists=gists)
    assert context == allocate(length, 320, utility, head=32, tail=32, gists=gists)
    lens = [entry.index for entry in context.entries if entry.reason == "lens"]
    assert lens == [12, 40, 50]
    # Room for one: with gists, all 62 blocks between the pinned ones start as gists of their own.
    tight = allocate(length, 32 * 3 + (62 if gists else 0), utility, head=32, tail=32, gists=gists)
    assert shown(tight) == [0, 12, 63]


def test_leftover_budget_goes_to_the_newest_blocks() -> None:
    length = 100 * BLOCK
    utility = np.zeros(100, dtype=np.float32)
    utility[10] = 1.0
    context = allocate(length, 32 * 6 + 8, utility, head=32, tail=32, gists=False, gap_cost=4)
    assert shown(context) == [0, 10, 96, 97, 98, 99]
    assert [entry.reason for entry in context.entries if entry.kind is Kind.RAW] == [
        "head", "lens", "recent", "recent", "recent", "tail",
    ]  # fmt: skip
    context = allocate(3 * 1024, 32 * 7 + 40, np.zeros(96, dtype=np.float32), head=32, tail=32, gists=True)
    assert shown(context)[-3:] == [93, 94, 95]


def test_gists_are_the_coarsest_that_hide_nothing_pinned() -> None:
    length = 4 * 32**3 + 7
    context = allocate(length, 320, np.zeros(length // BLOCK, dtype=np.float32), head=1, tail=0, gists=True)
    levels = [entry.level for entry in context.entries if entry.kind is Kind.GIST]
    # Level 3 node 0 holds the pinned head, so its rest is 31 + 31 nodes; nodes 1 and 2 stay whole; the leftover budget
    # opens the newest one down to its newest blocks.
    assert levels[:62] == [1] * 31 + [2] * 31
    assert levels[62:64] == [3, 3]
    assert context.entries[-2].reason == "recent"


@pytest.mark.parametrize("gists", [False, True])
@pytest.mark.parametrize(("length", "window"), [(0, 0), (5, 5), (32, 32), (33, 64), (4096, 4096)])
def test_a_history_that_fits_is_all_raw(length: int, window: int, gists: bool) -> None:
    utility = np.zeros(length // BLOCK, dtype=np.float32)
    context = allocate(length, window, utility, head=0, tail=0, gists=gists, gap_cost=9)
    assert [entry.kind for entry in context.entries] == [Kind.RAW] * -(-length // BLOCK)
    assert context.cost == length


@pytest.mark.parametrize("gists", [False, True])
def test_pinned_parts_that_do_not_fit_say_the_numbers(gists: bool) -> None:
    utility = np.zeros(100, dtype=np.float32)
    with pytest.raises(BudgetError, match=r"window of 100 .* \(128 tokens"):
        allocate(3200, 100, utility, head=33, tail=33, gists=gists, gap_cost=4)
    with pytest.raises(BudgetError, match="Raise the window"):
        allocate(3200, 3199, utility, head=1600, tail=1600, gists=gists)  # an empty middle


def test_coarsest_tiling_that_does_not_fit_is_a_budget_error() -> None:
    utility = np.zeros(1024, dtype=np.float32)
    with pytest.raises(BudgetError, match="62 gists"):
        allocate(32 * 1024, 32 + 61, utility, head=1, tail=0, gists=True)
    assert allocate(32 * 1024, 32 + 62, utility, head=1, tail=0, gists=True).cost == 94


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_utilities_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(AssertionError, match="finite"):
        allocate(64, 32, np.array([0, bad], dtype=np.float32), head=0, tail=0, gists=False)
    with pytest.raises(AssertionError, match="one utility per block"):
        allocate(64, 32, np.zeros(3, dtype=np.float32), head=0, tail=0, gists=False)


def test_raw_utility_counts_whole_blocks_shown_raw() -> None:
    utility = np.array([0.25, 0.5, 0.125, 1.0], dtype=np.float32)
    context = allocate(4 * 32 + 3, 67, utility, head=0, tail=0, gists=False)
    assert shown(context) == [1, 3, 4]
    assert raw_utility(context, utility) == 1.5


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_sealed_nodes_are_shown_as_their_gist_and_never_expanded(data: st.DataObject) -> None:
    length = data.draw(st.integers(6_000, 80_000))
    window = data.draw(st.integers(300, 3_000))
    seed = data.draw(st.integers(0, 99))
    utility = np.random.default_rng(seed).random(length // BLOCK).astype(np.float32)
    sealed = {(2, index) for index in data.draw(st.lists(st.integers(1, length // 1024 - 1), max_size=12))}
    sealed |= {(3, 0)} if length > 70_000 and data.draw(st.booleans()) else set()
    sealed = {(level, index) for level, index in sealed if level == 3 or (3, index // 32) not in sealed}
    try:
        made = allocate(length, window, utility, head=64, tail=128, gists=True, sealed=sorted(sealed))
    except BudgetError:
        return
    if length <= window:
        return
    for level, index in sealed:
        start, end = span(level, index)
        over = [e for e in made.entries if e.start < end and e.end > start]
        assert len(over) == 1 and over[0].kind is Kind.GIST and over[0].level >= level, over
    free = allocate(length, window, utility, head=64, tail=128, gists=True)
    assert sealed or made == free


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(2_000, 60_000),
    window=st.integers(128, 3_000),
    start=st.floats(0, 1),
    tokens=st.integers(1, 400),
    gists=st.booleans(),
    seed=st.integers(0, 99),
    flavour=st.sampled_from(["zero", "equal", "sparse", "signed"]),
)
def test_what_is_pinned_in_the_middle_is_raw(
    length: int, window: int, start: float, tokens: int, gists: bool, seed: int, flavour: str
) -> None:
    utility = utilities(length, seed, flavour)
    first = int(start * (length - tokens))
    pinned = range(first // BLOCK, -(-(first + tokens) // BLOCK))
    enough = BLOCK * len(pinned) + 2 * 64 + 128 + 2 * BLOCK + (217 + 3 * (BLOCK - 1) if gists else 4 * 3) <= window
    try:
        context = allocate(
            length, window, utility, head=64, tail=128, gists=gists, gap_cost=4, pinned=[(first, first + tokens)]
        )
    except BudgetError:
        if enough:
            raise
        return
    assert context.cost <= window and set(pinned) <= set(shown(context))
    if length > window:
        reasons = {entry.index: entry.reason for entry in context.entries if entry.kind is Kind.RAW}
        assert {reasons[block] for block in pinned} <= {"pinned", "head", "tail"}
    for entry in context.entries:
        if entry.reason == "pinned":
            assert entry.index in pinned and entry.score == utility[entry.index], "it was not worth more than before"


@pytest.mark.parametrize("gists", [False, True])
def test_a_middle_that_does_not_fit_says_so(gists: bool) -> None:
    utility = np.linspace(0, 1, 100, dtype=np.float32)
    with pytest.raises(BudgetError, match="pinned between its head and its tail"):
        allocate(3200, 320, utility, head=32, tail=32, gists=gists, gap_cost=4, pinned=[(1000, 1400)])
