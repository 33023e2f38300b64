"""Contexts: their cost, what they recall, and how spans become pieces; by hand and as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.eval.context import Context, Gap, Gist, Raw, show_best, show_spans

GAP = (7, 8, 9)
VECTOR = np.zeros(2, np.float32)


def test_cost() -> None:
    context = Context((Raw(0, 10), Gap(10, 50), Gist(50, 82, VECTOR), Raw(90, 95)), GAP)
    assert context.cost == 10 + 3 + 1 + 5
    assert context.raw == [(0, 10), (90, 95)]
    assert Context((), ()).cost == 0


@pytest.mark.parametrize("pieces", [(Raw(5, 5),), (Raw(0, 5), Gap(4, 9)), (Gap(5, 9), Raw(0, 5)), (Raw(3, 2),)])
def test_pieces_are_in_order(pieces: tuple[Raw | Gap, ...]) -> None:
    with pytest.raises(AssertionError, match="out of order"):
        Context(pieces, GAP)


@pytest.mark.parametrize(
    ("evidence", "recall"),
    [
        ([(10, 20)], 1.0),
        ([(0, 10)], 0.0),
        ([(5, 15)], 0.5),
        ([(15, 35)], 0.75),
        ([(25, 30)], 0.0),
        ([(10, 20), (40, 80)], 0.2),
        ([(19, 31)], 7 / 12),
        ([(0, 100)], 0.25),
    ],
)
def test_recall(evidence: list[tuple[int, int]], recall: float) -> None:
    """Raw are 10–20 and 20–25 and 30–40; a gist of what is asked for is no recall."""
    context = Context((Raw(10, 20), Raw(20, 25), Gap(25, 30), Raw(30, 40), Gist(40, 72, VECTOR)), GAP)
    assert context.recall(evidence) == pytest.approx(recall)


def test_show_spans() -> None:
    context = show_spans([(50, 60), (10, 20), (20, 25), (55, 70), (80, 80)], 100, GAP)
    assert context.pieces == (Gap(0, 10), Raw(10, 25), Gap(25, 50), Raw(50, 70), Gap(70, 100))
    assert show_spans([(0, 100)], 100, GAP).pieces == (Raw(0, 100),)
    assert show_spans([], 100, GAP).pieces == (Gap(0, 100),)
    assert show_spans([(90, 100)], 100, ()).pieces == (Raw(90, 100),)
    assert show_spans([], 0, GAP).pieces == show_spans([(0, 0)], 0, GAP).pieces == ()


def test_show_best() -> None:
    ranked = [(40, 50), (0, 10), (90, 100), (50, 60), (60, 90), (10, 40)]
    # One gap 3; the middle one 10 + 3 more; the first one 10; the last one 10; a neighbour 10.
    for budget, raw in (
        (16, [(40, 50)]),
        (26, [(0, 10), (40, 50)]),
        (36, [(0, 10), (40, 50), (90, 100)]),
        (46, [(0, 10), (40, 60), (90, 100)]),
        (50, [(0, 10), (40, 64), (90, 100)]),  # the next in its beginning, the gap behind it was there
        (73, [(0, 10), (40, 100)]),  # all of it: 30, less the gap that is filled
        (74, [(0, 11), (40, 100)]),
        (100, [(0, 100)]),
    ):
        context = show_best(ranked, 100, budget, GAP)
        assert context.raw == raw, budget
        assert context.cost == budget or budget == 100
    assert show_best(ranked, 100, 5, GAP).raw == [(0, 2)], "too little for what needs a second gap"
    assert show_best(ranked[:1], 100, 5, GAP).cost == show_best(ranked, 100, 3, GAP).cost == 3, "or for anything"


def test_what_is_cut_needs_a_gap_behind() -> None:
    context = show_best([(20, 40), (60, 100)], 100, 36, GAP)
    # 3 + 20 + 3 = 26; the second would bring 40 and no gap, cut to 7 it brings a gap.
    assert context.raw == [(20, 40), (60, 67)] and context.cost == 36


@given(
    length=st.integers(1, 400),
    size=st.integers(1, 40),
    budget=st.integers(6, 400),
    gap=st.integers(0, 6),
    random=st.randoms(use_true_random=False),
)
def test_chunks_spend_the_budget(length: int, size: int, budget: int, gap: int, random: object) -> None:
    chunks = [(start, min(start + size, length)) for start in range(0, length, size)]
    random.shuffle(chunks)  # type: ignore[attr-defined]
    context = show_best(chunks, length, budget, [1] * gap)
    assert context.cost <= budget
    if length <= budget:
        assert context.raw == [(0, length)]
    else:
        assert context.cost >= budget - gap, "less is left than a gap would take"
    shown = sum(stop - start for start, stop in context.raw)
    assert shown + sum(p.stop - p.start for p in context.pieces if isinstance(p, Gap)) == (length if gap else shown)
