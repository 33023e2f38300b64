"""The invariants of a Working Context: what check() must refuse."""

import pytest

from megacontext_vllm.focus.working_context import Entry, Kind, WorkingContext


def raw(block: int, end: int | None = None) -> Entry:
    start = block * 32
    end = start + 32 if end is None else end
    return Entry(Kind.RAW, 1, block, start, end, end - start, "lens", 0.0)


def gist(level: int, index: int) -> Entry:
    return Entry(Kind.GIST, level, index, index * 32**level, (index + 1) * 32**level, 1, "cover", 0.0)


def gap(first: int, stop: int, cost: int = 4) -> Entry:
    return Entry(Kind.GAP, 1, first, first * 32, stop * 32, cost, "gap", 0.0)


GOOD = (gist(2, 0), raw(32), gap(33, 40), raw(40), raw(41, 41 * 32 + 7))
LENGTH = 41 * 32 + 7


def test_cost_is_the_sum_of_its_entries() -> None:
    context = WorkingContext(GOOD, LENGTH, 76)
    assert context.cost == 1 + 32 + 4 + 32 + 7
    context.check()


def test_nothing_tiles_an_empty_history() -> None:
    assert WorkingContext((), 0, 0).cost == 0


@pytest.mark.parametrize(
    ("entries", "window", "why"),
    [
        (GOOD, 75, "budget"),
        (GOOD[:-1], 76, "contiguity"),
        (GOOD[1:], 76, "contiguity"),
        (GOOD[:1] + GOOD[2:], 76, "contiguity"),
        ((GOOD[1], GOOD[0], *GOOD[2:]), 76, "contiguity"),
        ((GOOD[0], *GOOD), 99, "contiguity"),
        ((GOOD[0], GOOD[1], gap(33, 36), gap(36, 40), *GOOD[3:]), 99, "two gaps"),
        ((*GOOD[:-1], gist(1, 41)), 99, "no such node"),
        ((*GOOD[:-1], gist(1, 41)._replace(end=LENGTH)), 99, "alignment"),
        ((*GOOD[:-1], gap(41, 42)._replace(end=LENGTH)), 99, "alignment"),
        ((*GOOD[:3], raw(40)._replace(end=LENGTH, cost=39)), 99, "one block"),
        ((*GOOD[:3], raw(40)._replace(end=40 * 32 + 20, cost=20)), 99, "alignment"),
        ((*GOOD[:3], raw(40)._replace(index=39), GOOD[4]), 99, "alignment"),
        ((GOOD[0]._replace(cost=2), *GOOD[1:]), 99, "a gist costs 1"),
        ((*GOOD[:3], raw(40)._replace(cost=31), GOOD[4]), 99, "one block"),
    ],
)
def test_a_broken_invariant_is_refused(entries: tuple[Entry, ...], window: int, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        WorkingContext(entries, LENGTH, window)
