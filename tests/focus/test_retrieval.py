"""Retrieval with hidden spans: exact accounting of gap markers, against brute force on short histories."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.focus.retrieval import retrieve

# Greedy by utility with markers of at most 12 tokens, 1,600 random cases: mean 0.998, worst 0.61 (budgets of two or
# three blocks, where one more marker decides). Longer markers are accounted for, but not optimised for.
HONEST_FRACTION = 0.5


def cost_of(shown: np.ndarray, first: int, stop: int, gap_cost: int) -> int:
    """Counted from the result alone: 32 per shown block of the middle, one marker per hidden run."""
    hidden = ~shown
    runs = int((hidden & ~np.concatenate([[False], hidden[:-1]])).sum())
    return 32 * int(shown[first:stop].sum()) + gap_cost * runs


@settings(max_examples=300, deadline=None)
@given(
    middle=st.lists(st.sampled_from([0.0, 0.3, 0.5, 1.0]) | st.floats(-1, 1, width=32), max_size=9),
    head=st.integers(0, 2),
    tail=st.integers(0, 2),
    gap_cost=st.integers(0, 40),
    spare=st.integers(0, 200),
)
def test_budget_and_utility(middle: list[float], head: int, tail: int, gap_cost: int, spare: int) -> None:
    utility = np.array([0.0] * head + middle + [0.0] * tail, dtype=np.float32)
    first, stop = head, head + len(middle)
    budget = gap_cost + spare
    shown, recent = retrieve(utility, first, stop, budget, gap_cost)
    assert shown[:first].all()
    assert shown[stop:].all()
    assert cost_of(shown, first, stop, gap_cost) <= budget
    assert not (recent & ~shown).any()
    chosen = shown & ~recent
    assert (utility[first:stop][chosen[first:stop]] > 0).all()

    optimum = 0.0
    for size in range(len(middle) + 1):
        for picked in combinations(range(first, stop), size):
            trial = np.ones(len(utility), dtype=bool)
            trial[first:stop] = False
            trial[list(picked)] = True
            if cost_of(trial, first, stop, gap_cost) <= budget:
                optimum = max(optimum, float(np.maximum(utility[list(picked)], 0).sum()))
    got = float(np.maximum(utility[first:stop][shown[first:stop]], 0).sum())
    if gap_cost <= 12:
        assert got >= HONEST_FRACTION * optimum - 1e-6


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (10, []),
        (51, []),
        (52, [4]),  # 32 and a second marker: it splits the hidden run
        (83, [4]),
        (84, [4, 5]),  # beside a shown block: 32
        (126, [4, 5, 7]),  # a third run
        (147, [4, 5, 7]),
        (148, [4, 5, 6, 7]),  # fills the hole: 32 less the marker that goes
    ],
)
def test_exact_cost_of_markers(budget: int, expected: list[int]) -> None:
    utility = np.zeros(12, dtype=np.float32)
    utility[[4, 5, 7, 6]] = [1.0, 0.9, 0.8, 0.7]
    shown, recent = retrieve(utility, 1, 11, budget, 10)
    assert [block for block in np.flatnonzero(shown).tolist() if 1 <= block < 11 and not recent[block]] == expected


def greedy(utility: np.ndarray, first: int, stop: int, budget: int, gap_cost: int) -> tuple[list[int], list[int]]:
    """What is promised, in the plainest way: every block in turn, taken if it fits. -> (for utility, for recency)"""
    shown = [True] * first + [False] * (stop - first) + [True] * (len(utility) - stop)
    shown = [True, *shown, True]  # the world outside
    left = budget - gap_cost
    wanted = [b for b in np.argsort(-utility, kind="stable").tolist() if first <= b < stop and utility[b] > 0]
    taken: list[list[int]] = [[], []]
    for number, order in enumerate((wanted, range(stop - 1, first - 1, -1))):
        for block in order:
            cost = 32 + gap_cost * (1 - shown[block] - shown[block + 2])
            if not shown[block + 1] and cost <= left:
                shown[block + 1] = True
                taken[number].append(block)
                left -= cost
    return taken[0], taken[1]


@settings(max_examples=500, deadline=None)
@given(st.integers(1, 120), st.integers(0, 2), st.integers(0, 16), st.integers(0, 3000), st.integers(0, 10**6))
def test_no_block_that_fits_is_passed_over(middle: int, ends: int, gap_cost: int, spare: int, seed: int) -> None:
    """Only as many blocks are sorted as the budget may hold; the choice is as if all were gone through."""
    rng = np.random.default_rng(seed)
    utility = (rng.integers(-3, 10, middle + 2 * ends) / 10).astype(np.float32)
    shown, recent = retrieve(utility, ends, ends + middle, gap_cost + spare, gap_cost)
    wanted, late = greedy(utility, ends, ends + middle, gap_cost + spare, gap_cost)
    inside = range(ends, ends + middle)
    assert [b for b in inside if shown[b] and not recent[b]] == sorted(wanted)
    assert np.flatnonzero(recent).tolist() == sorted(late)


def test_an_empty_middle_costs_nothing() -> None:
    shown, recent = retrieve(np.zeros(3, dtype=np.float32), 2, 2, 0, 9)
    assert shown.all()
    assert not recent.any()
