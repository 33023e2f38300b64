"""Words of a history, whatever the tokens: against a slow reference that joins the text."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.focus.spelling import Spelling
from megacontext_vllm.focus.words import Words

VOCABULARY = [
    *(" sea", "sea", " s", "sick", "ness", "Sea", " SEA", "\n", ".", " ", "3", "_", "\ufffd", "", " é", "té", " x-y"),
    "'s",
]
WORDS = {"sea": 0, "seasick": 1, "seasickness": 2, "sick": 3, "ness": 4, "été": 5, "x": 6, "y": 7, "seasea": 8, "s": 9}


def slow(tokens: list[int], vocabulary: list[str], words: dict[str, int]) -> list[int]:
    """The definition: each run of letters of the joined text belongs to the token that its first letter is in.

    A token without text, or beyond the vocabulary, ends a word.
    """
    texts = [(vocabulary[token] if token < len(vocabulary) else "") or " " for token in tokens]
    starts = np.cumsum([0, *map(len, texts)])
    rows = [-1] * len(tokens)
    for found in re.finditer(r"[^\W\d_]+", "".join(texts)):
        token = int(np.searchsorted(starts, found.start(), side="right")) - 1
        rows[token] = words.get(found[0].casefold(), -1)
    return rows


def fast(tokens: list[int], vocabulary: list[str] = VOCABULARY, words: dict[str, int] = WORDS) -> list[int]:
    return Words(Spelling(vocabulary), words).rows(np.array(tokens, dtype=np.uint32)).tolist()


def test_words_of_several_tokens() -> None:
    assert fast([0, 3, 4]) == [2, -1, -1], "the word stands where it begins"
    assert fast([0, 3, 8, 6, 7, 3]) == [1, -1, -1, 0, -1, 3]
    assert fast([5, 5]) == [8, -1], "whatever the case"
    assert fast([14, 15]) == [5, -1], "letters, not ASCII alone"
    assert fast([0, 12, 3]) == [0, -1, 3], "half a character is no letter"
    assert fast([0, 999, 3]) == [0, -1, 3], "nor is an id beyond the vocabulary"


def test_a_token_of_several_words_stands_for_the_last() -> None:
    assert fast([16]) == [7]


def test_nothing_and_no_words() -> None:
    assert fast([]) == []
    assert fast([0, 3], words={}) == [-1, -1]
    assert fast([0, 1], vocabulary=[], words=WORDS) == [-1, -1]


def test_letters_without_end_are_no_word() -> None:
    assert fast([0, *[3] * 1000, 8, 0]) == [*[-1] * 1002, 0]
    assert fast([0], vocabulary=["a" * 1000], words={"a" * 64: 0}) == [-1]


@given(st.lists(st.integers(0, len(VOCABULARY) + 1).filter(lambda token: token != 16), max_size=40))
def test_against_the_definition(tokens: list[int]) -> None:
    assert fast(tokens) == slow(tokens, VOCABULARY, WORDS)
