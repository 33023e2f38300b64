"""Where the budget goes that is left when one place has all that was asked for."""

import numpy as np
import pytest

from megacontext_vllm.focus.surroundings import answering, outdate, surround, versions, without_rivals

BLOCKS = 300


def places(*blocks: int, worth: float = 1.0, others: float = 0.5) -> np.ndarray:
    """Those blocks are of this utility, every tenth other one is a rival of half of it."""
    utility = np.zeros(BLOCKS, dtype=np.float32)
    utility[::10] = others
    utility[list(blocks)] = worth
    return utility


NOTHING = np.zeros(BLOCKS, dtype=np.float32)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (places(77, worth=0.9), [77]),
        (places(77, worth=0.7), []),  # half of the question is somewhere: that is no answer
        (places(77, 133, 201), [77, 133, 201]),
        (places(77, 133, 201, 255), []),  # many have all of it: it is they that are asked for
        (places(77, others=0.85), [77]),  # a word is missing elsewhere
        (places(77, others=0.95), []),
        (NOTHING, []),
        (NOTHING[:0], []),
    ],
)
def test_places_that_have_all_of_the_question(share: np.ndarray, expected: list[int]) -> None:
    utility = share / max(share.max(initial=0), 1e-6)
    assert sorted(answering(utility, share)) == expected


def test_what_a_boundary_cuts_in_two_is_one_place_like_the_others() -> None:
    """Either half of it has less of the question than a place that is whole, but not both together."""
    utility, share = places(77, 133, others=0.5), places(77, 133, others=0.5)
    utility[[201, 202]] = 0.79, 0.66
    share[[76, 77, 78, 132, 133, 134, 201, 202]] = 1
    assert sorted(answering(utility, share)) == [77, 133, 201] and versions(utility, share) == [201, 133, 77]
    less = without_rivals(utility, share)
    assert less[201] == utility[201] and less[202] == utility[202] and less[10] == np.float32(0.5) ** 6


def test_rivals_lose_and_keep_their_order() -> None:
    utility = np.array([1, 0.85, 0.79, 0.5, 0.1, 0], dtype=np.float32)
    before, share = utility.copy(), utility.copy()
    share[1] = 0.9
    less = without_rivals(utility, share)
    assert np.array_equal(utility, before) and less.dtype == np.float32
    assert less[:2].tolist() == before[:2].tolist() and (less[2:] <= before[2:]).all()
    assert less[3] == 0.5**6 and (np.diff(less) <= 0).all()
    assert without_rivals(NOTHING[:0], NOTHING[:0]).shape == (0,)


def test_what_stands_around_comes_before_rivals_and_after_what_is_named() -> None:
    raised = surround(without_rivals(places(77, others=0.4), places(77, others=0.4)), [77], 0.8)
    around = raised[78:110]
    assert (np.diff(around) <= 0).all() and around[0] <= 0.4 * 0.95, "what four places name (0.4) comes first"
    assert around[-1] > 0.4**6 and raised[110] == raised[130], "32 blocks, before any rival"
    assert np.array_equal(raised[45:77], around[::-1]), "to either side"
    assert raised[77] == 1 and raised[44] == 0


def test_the_more_of_the_question_is_there_the_more_its_surroundings_count() -> None:
    less, more, most = (surround(places(77), [77], covered) for covered in (0.8, 0.9, 0.95))
    around = [*range(45, 77), *range(78, 110)]
    lone = [block for block in around if block % 10]
    assert (less[lone] < more[lone]).all() and (more[lone] < most[lone]).all()
    assert np.array_equal(most, surround(places(77), [77], 1.0)) and most[78] < 1
    assert most[109] > 0.4, "what only means the like of the rest comes after it"


@pytest.mark.parametrize("place", [0, 3, 31, 32, 150, 267, 268, 296, BLOCKS - 1])
def test_at_an_end_of_the_history_more_is_shown_on_the_other_side(place: int) -> None:
    raised = surround(places(place, others=0.0), [place], 1.0)
    around = np.flatnonzero(raised)
    assert len(around) == 65 and place in around and (np.diff(around) == 1).all()
    assert surround(places(3)[:20], [3], 1.0).shape == (20,)


def test_places_that_share_a_budget_have_less_text_each_before_what_they_name() -> None:
    """As many blocks in all that come before half of a place's worth, however many places there are."""
    for told in ([150], [60, 150], [40, 110, 180, 250]):
        raised = surround(places(*told, others=0.0), told, 1.0)
        assert abs(int((raised > 0.52).sum()) - 15) <= 4
        assert (raised > 0).sum() == 65 * len(told), "and all of it before what is there by chance"


def test_a_place_of_little_worth_raises_little_and_nothing_is_lowered() -> None:
    utility = places(5, 295, worth=0.5)
    utility[7] = 0.9
    before = utility.copy()
    raised = surround(utility, [5, 295], 0.8)
    assert np.array_equal(utility, before) and (raised >= utility).all() and raised.shape == (BLOCKS,)
    assert raised[7] == 0.9 and raised[1] == pytest.approx(raised[9]) and raised[1] < 0.5 * 0.38
    assert np.array_equal(surround(utility, [], 1.0), utility)
    double = surround(places(5, worth=1.6), [5], 0.8)
    assert double[6] <= 0.38, "what both lenses have found is not worth more around it"


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (places(77, worth=0.9), [77]),
        (places(201, 77, 133, 255), [255, 201, 133, 77]),  # more than answer one question; these tell it anew
        (places(77, 133, worth=0.7), []),
        (places(*range(5, 205, 20)), []),  # a subject
        (NOTHING[:0], []),
    ],
)
def test_what_is_told_anew(share: np.ndarray, expected: list[int]) -> None:
    assert versions(share, share) == expected


def test_the_last_one_holds() -> None:
    """The others come after what stands around it, and before what is there by chance; so does what they lend."""
    told = [201, 195, 133, 77]
    lent = places(*told, others=0.3)
    lent[[place + side for place in told for side in (-1, 1)]] = 0.95
    utility = surround(lent, told[:1], 1.0)
    before = utility.copy()
    lowered = outdate(utility, told)
    assert np.array_equal(utility, before) and lowered.dtype == np.float32
    assert lowered[201] == 1 and lowered[[200, 202]].tolist() == before[[200, 202]].tolist()
    outdated = [place + side for place in told[1:] for side in (-1, 0, 1)]
    assert 0.3 < lowered[outdated].max() == lowered[outdated].min() < before[201 + 32]
    rest = np.setdiff1d(np.arange(BLOCKS), outdated)
    assert np.array_equal(lowered[rest], before[rest])
    assert np.array_equal(outdate(utility, [201]), utility) and np.array_equal(outdate(utility, []), utility)


def test_one_told_beside_the_last_one_keeps_what_both_share() -> None:
    lowered = outdate(np.ones(10, dtype=np.float32), [9, 7])
    assert lowered[[8, 9]].tolist() == [1, 1] and (lowered[[6, 7]] < 1).all()
    assert (outdate(np.ones(3, dtype=np.float32), [2, 0])[0] < 1).all()
