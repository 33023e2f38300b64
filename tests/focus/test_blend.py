"""Two lenses, one utility: neither loses what it finds, and the one that finds nothing is not heard."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from megacontext_vllm.focus.blend import blend

BLOCKS = 4000


def crowd(best: int, seed: int, height: float = 0.9) -> np.ndarray:
    """One block of utility 1, and hundreds that are nearly as good."""
    utility = height * np.random.default_rng(seed).random(BLOCKS).astype(np.float32) ** 0.2
    utility[best] = 1
    return utility


def peak(best: int, seed: int) -> np.ndarray:
    """One block of utility 1, all others far below."""
    return crowd(best, seed, 0.3)


def first(utility: np.ndarray, count: int) -> set[int]:
    return set(np.argsort(-utility)[:count].tolist())


def test_what_stands_out_is_not_drowned_by_a_crowd() -> None:
    for covered in (0.0, 0.5, 1.0):
        both = blend(peak(70, 0), crowd(3000, 1), covered)
        assert {70, 3000} == first(both, 2)
    both = blend(crowd(70, 2), peak(3000, 3), 0.2)
    assert {70, 3000} == first(both, 2), "each lens's best block comes before the crowds of both"


def test_words_that_are_all_there_leave_meaning_little() -> None:
    words, meaning = peak(70, 0), peak(3000, 1)
    both = [blend(words, meaning, covered) for covered in (0.0, 0.3, 0.6, 1.0)]
    meant = [float(utility[3000]) for utility in both]
    assert meant[0] >= 1 and meant[1] >= 1 and meant[1] > meant[2] > meant[3] > 0
    said = [float(utility[70]) for utility in both]
    assert said == sorted(said) and 0.6 < said[0] < 1 <= said[3], "and the fewer they are, the less they count alone"


def test_words_that_many_places_have_are_doubted() -> None:
    meaning = peak(3000, 1)
    chance = [float(blend(crowd(70, 0), meaning, covered)[70]) for covered in (0.0, 0.3, 0.6, 1.0)]
    assert chance == sorted(chance) and chance[0] < 0.4 and chance[1] < 0.6 and chance[3] >= 1


def test_what_both_find_comes_first() -> None:
    """Three places with the question's words, three with its meaning, one of them with both."""
    words, meaning = crowd(70, 0, 0.3), crowd(3000, 1, 0.3)
    words[[500, 900]], meaning[[500, 1500]] = 0.8, 0.8
    for covered in (0.1, 0.5, 0.9):
        both = blend(words, meaning, covered)
        assert first(both, 1) == {500} and first(both, 5) == {70, 500, 900, 1500, 3000}


def test_a_lens_that_finds_nothing_is_not_heard() -> None:
    nothing, crowded = np.zeros(BLOCKS, dtype=np.float32), crowd(70, 0)
    assert np.array_equal(blend(crowded, nothing, 0.5), crowded)
    assert np.array_equal(blend(nothing, crowded, 0.0), crowded)
    assert blend(nothing[:0], nothing[:0], 0.0).shape == (0,)


def test_all_alike() -> None:
    same = np.ones(BLOCKS, dtype=np.float32)
    assert len(np.unique(blend(same, same, 0.0))) == 1


utilities = arrays(np.float32, 200, elements=st.floats(0, 1, width=32))


@given(utilities, utilities, st.floats(0, 1))
def test_bounds_and_order(words: np.ndarray, meaning: np.ndarray, covered: float) -> None:
    before = words.copy(), meaning.copy()
    both = blend(words, meaning, covered)
    assert both.dtype == np.float32 and both.shape == (200,) and both.min() >= 0 and both.max() <= 2
    assert np.array_equal(words, before[0]) and np.array_equal(meaning, before[1])
    better = (words[:, None] >= words) & (meaning[:, None] >= meaning)
    assert (both[:, None] - both >= -1e-6)[better].all(), "better for both lenses is never worse"


def test_what_all_blocks_mean_alike_drowns_nothing() -> None:
    lexical = np.zeros(500, dtype=np.float32)
    lexical[[7, 300]] = [1.0, 0.4]
    both = blend(lexical, np.ones(500, dtype=np.float32), covered=0.2)
    assert np.argsort(-both)[:2].tolist() == [7, 300]
    # The very words, though, are worth showing wherever they stand.
    assert blend(np.ones(500, dtype=np.float32), lexical, covered=1.0).min() >= 1
