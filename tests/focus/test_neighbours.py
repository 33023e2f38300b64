"""What blocks inherit: all of the neighbourhood where few places answer, sentences that go over where many do."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.focus.neighbours import apart, lend

BLOCKS = 60
WORD, END = 0, 1
ENDS = np.array([False, True, False])


def history(*ends: int) -> np.ndarray:
    """Words, with a sentence that ends at each of the given tokens."""
    tokens = np.full(BLOCKS * 32 + 5, WORD, dtype=np.uint32)
    tokens[list(ends)] = END
    return tokens


def alike(*blocks: int) -> np.ndarray:
    utility = np.zeros(BLOCKS, dtype=np.float32)
    utility[list(blocks)] = 1.0
    return utility


def test_few_places_lend_to_both_sides() -> None:
    utility = alike(10, 30, 50)
    hits = np.array([10 * 32 + 16, 30 * 32 + 16, 50 * 32 + 16])
    ends = [b * 32 + place for b in (10, 30, 50) for place in (2, 30)]  # no sentence goes over
    spread = lend(utility, history(*ends), lambda _: hits, ENDS)
    for block in (10, 30, 50):
        assert spread[block] == 1 and np.allclose(spread[[block - 1, block + 1]], 0.95)
    assert np.count_nonzero(spread) == 9


def test_of_many_places_a_sentence_lends_more() -> None:
    places = (5, 15, 25, 35, 45)
    hits = np.array([b * 32 + 16 for b in places])
    ends = [5 * 32 + 2, 15 * 32 + 30, 25 * 32 + 2, 25 * 32 + 16, 35 * 32 + 17]
    spread = lend(alike(*places), history(*ends), lambda _: hits, ENDS)
    full, less = 0.95, 0.8
    expected = {4: less, 6: full, 14: full, 16: less, 24: less, 26: less, 34: full, 36: less, 44: full, 46: full}
    for block, value in expected.items():
        assert np.isclose(spread[block], value), block
    assert (spread[list(places)] == 1).all()


def test_an_end_before_the_first_hit_or_behind_the_last_counts_only() -> None:
    """Between the hits of a block sentences may end as they like."""
    places = (5, 15, 25, 35)
    hits = np.array(sorted(b * 32 + place for b in places for place in (8, 24)))
    spread = lend(alike(*places), history(*(b * 32 + 16 for b in places)), lambda _: hits, ENDS)
    assert all(np.allclose(spread[[b - 1, b + 1]], 0.95) for b in places)


def test_blocks_without_a_hit_of_their_own() -> None:
    """Useful by a neighbour's words: nothing goes over from them. And no hits at all."""
    places = (5, 15, 25, 35)
    for hits in (np.array([5 * 32]), np.array([], dtype=np.intp)):
        spread = lend(alike(*places), history(), lambda _, hits=hits: hits, ENDS)
        assert np.allclose(spread[[14, 16, 24, 26]], 0.8)


def test_apart() -> None:
    utility = np.array([0.9, 1.0, 0.9, 0.9, 0.1, 0.95], dtype=np.float32)
    assert apart(utility, 0.5, 9) == [1, 5, 3]
    assert apart(utility, 0.5, 2) == [1, 5]
    assert apart(utility, 2.0, 9) == [] and apart(utility[:0], 0.0, 9) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1, width=32), min_size=0, max_size=40), st.integers(0, 10**6))
def test_bounds(values: list[float], seed: int) -> None:
    utility = np.array(values, dtype=np.float32)
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 3, len(values) * 32 + 7).astype(np.uint32)
    hits = np.flatnonzero(rng.random(len(values) * 32) < 0.05)
    before = utility.copy()
    spread = lend(utility, tokens, lambda _: hits, ENDS)
    assert np.array_equal(utility, before) and spread.dtype == np.float32
    assert (spread >= utility).all() and (spread <= utility.max(initial=0.0)).all()
