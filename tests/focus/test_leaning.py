"""Of the places that have a question's own words, those that speak of whom it is about come first."""

from dataclasses import replace

import numpy as np
import pytest

from megacontext_vllm.focus.leaning import narrow
from megacontext_vllm.focus.lexical import Found

BLOCKS = 100


def found(covered: float = 1.0, **at: float) -> Found:
    """``b7=0.5``: what block 7 has."""
    utility = np.zeros(BLOCKS, dtype=np.float32)
    for block, worth in at.items():
        utility[int(block[1:])] = worth
    return Found(utility, covered, utility.copy())


def in_part(found: Found) -> Found:
    """The same where no place has all of the question."""
    return replace(found, share=np.float32(0.7) * found.share)


NOTHING = np.zeros(BLOCKS, dtype=np.float32)


def test_the_place_with_the_name_comes_first_and_what_was_answered_before_does_not() -> None:
    own, before = in_part(found(b10=1, b20=0.9, b30=1)), found(b20=0.8, b50=1)
    words, meant = narrow(own, NOTHING, before, found(b10=0.8, b20=1, b30=0.8, b50=0.7))
    assert words.utility.argmax() == 20 and words.utility[20] == 1
    assert words.utility[10] == words.utility[30] == pytest.approx(0.8 * 0.4)
    assert words.share[20] == pytest.approx(0.63) and words.share[50] == 0, "it has nothing of the question"
    assert not meant.any() and words.covered == own.covered
    assert own.utility[10] == 1, "new arrays"


def test_what_means_the_like_is_narrowed_too() -> None:
    meant = NOTHING.copy()
    meant[[10, 20]] = 1, 0.9
    words, narrowed = narrow(found(covered=0), meant, found(b20=1), found(b20=1))
    assert narrowed.argmax() == 20 and narrowed[20] == 1 and narrowed[10] < 0.5
    assert words.utility[20] == 1 and not words.share.any()


@pytest.mark.parametrize("away", [-4, -1, 1, 4])
def test_a_name_counts_for_what_stands_near(away: int) -> None:
    """'Amos Reed kept it. ... He died in 1871.'"""
    words, _ = narrow(found(b10=1, b50=1), NOTHING, found(**{f"b{50 + away}": 1}), found(b10=1, b50=1))
    assert words.utility[50] == 1 and words.utility[10] < 0.5
    far, _ = narrow(found(b10=1, b50=1), NOTHING, found(b80=1), found(b10=1, b50=1))
    assert far.utility[10] == far.utility[50] == 1, "where none of them speaks of it, nothing is changed"


def test_what_stands_there_by_chance_decides_less() -> None:
    own = in_part(found(b10=1, b50=1))
    some = [narrow(own, NOTHING, found(b50=share), own)[0].utility[10] for share in (0.03, 0.15, 0.3, 1)]
    assert some == sorted(some, reverse=True) and some[0] > 0.9 and some[2] == some[3] == pytest.approx(0.4)


def test_beside_one_that_has_all_of_both_whoever_shares_a_name_is_somebody_else() -> None:
    own, meant = found(b10=1, b20=0.9, b30=1, b40=0.5), found(b10=1, b20=1).utility
    before = found(b10=0.5, b20=0.9, b30=0.5, b50=1)
    words, means = narrow(own, meant, before, own)
    assert words.utility.argmax() == means.argmax() == 20
    assert words.utility[10] == words.utility[30] < 0.4 and means[10] < 0.4
    assert (words.share > 0.8).nonzero()[0].tolist() == [20]
    # Two places that have all: it may be said of either.
    either = found(b10=0.9, b20=0.9, b30=0.5, b50=1)
    assert narrow(own, meant, either, own)[0].utility[30] > 0.5
    # No place has all that is asked: names alone are not the answer.
    assert narrow(in_part(own), meant, before, own)[0].utility[30] > 0.5


def test_a_question_without_words_of_its_own() -> None:
    before = found(b7=1)
    assert narrow(found(covered=0), NOTHING, before, before)[0] is before
