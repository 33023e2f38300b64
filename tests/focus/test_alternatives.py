"""Of the things that a question lists, those count that the history has. Words are one token or several."""

import numpy as np
import pytest

from megacontext_vllm.focus.alternatives import sought
from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Spelling
from megacontext_vllm.tree.nodes import BLOCK

VOCABULARY = [
    " orig",
    "ami",
    " Orig",
    " macrame",
    " falcon",
    "ry",
    " tea",
    " blending",
    " the",
    " and",
    ".",
    "?",
    "19",
    "20",
]
ID = {text: i for i, text in enumerate(VOCABULARY)}
SPELLING = Spelling(VOCABULARY)
LENGTH = 20 * BLOCK
ASKED = [" orig", "ami", " macrame", " falcon", "ry", " tea", " blending", "?"]
Listed = tuple[tuple[int, int, str], ...]
LISTED: Listed = ((0, 2, "origami"), (2, 3, "macrame"), (3, 5, "falconry"), (5, 7, "tea blending"))


def history(words: dict[int, list[str]], end: int = LENGTH, again: int = 33) -> np.ndarray:
    """Each of the words is named again, ``again`` tokens on."""
    tokens = np.full(end, ID[" the"], dtype=np.uint32)
    for at, pieces in words.items():
        for place in (at, at + again) if again else (at,):
            tokens[place : place + len(pieces)] = [ID[piece] for piece in pieces]
    return tokens


def ask(words: dict[int, list[str]], listed: Listed = LISTED, again: int = 33) -> tuple[Query, Query]:
    """What was asked, at the end of the history, and what is sought."""
    terms = np.array([ID[piece] for piece in ASKED])
    tokens = np.concatenate([history(words, again=again), terms.astype(np.uint32)])
    query = Query(terms, np.ones(len(terms), dtype=np.float32), LENGTH, len(tokens), alternatives=listed)
    return query, sought(History(tokens, SPELLING), query)


def counted(query: Query) -> list[str]:
    return [VOCABULARY[term] for term, weight in zip(query.terms, query.weights) if weight]


@pytest.mark.parametrize(
    ("words", "left"),
    [
        ({100: [" falcon", "ry"]}, [" falcon", "ry", "?"]),
        ({100: [" Orig", "ami"], 300: [" orig", "ami"]}, [" orig", "ami", "?"]),
        ({100: [" macrame"], 400: [" falcon", "ry"]}, [" macrame", " falcon", "ry", "?"]),
        ({100: [" tea", " blending"]}, [" tea", " blending", "?"]),
        ({95: [" tea"], 97: [" blending"]}, [" tea", " blending", "?"]),
        # words of a thing that stand far from each other are not the thing
        ({100: [" tea"], 400: [" blending"], 200: [" macrame"]}, [" macrame", "?"]),
        # a part of a word is not the word
        ({100: [" orig"], 400: [" macrame"]}, [" macrame", "?"]),
    ],
)
def test_what_stands_nowhere_is_not_sought_beside_what_does(words: dict[int, list[str]], left: list[str]) -> None:
    asked, query = ask(words)
    assert counted(query) == left
    assert asked.weights.all(), "the query that was given is not written to"
    assert np.array_equal(query.terms, asked.terms) and query.weights.dtype == np.float32


def test_another_form_of_a_word_is_the_word() -> None:
    listed = ((0, 2, "origami"), (2, 3, "macrames"), (3, 5, "falconries"), (5, 7, "teas blending"))
    _, query = ask({100: [" macrame"], 300: [" falcon", "ry"], 303: [" tea", " blending"]}, listed)
    assert counted(query) == [" macrame", " falcon", "ry", " tea", " blending", "?"]


def test_what_stands_in_many_places_may_be_there_by_chance() -> None:
    places = {100 + 90 * i: [" macrame"] for i in range(4)}
    asked, query = ask(places)
    assert query is asked
    assert counted(ask(dict(list(places.items())[:3]))[1]) == [" macrame", "?"]


@pytest.mark.parametrize("again", [0, 17 * BLOCK])
def test_what_is_named_once_may_be_there_by_chance(again: int) -> None:
    asked, query = ask({20: [" macrame"]}, again=again)
    assert query is asked
    assert counted(ask({20: [" macrame"]}, again=5)[1]) == counted(ask({20: [" macrame"]})[1]) == [" macrame", "?"]


EVERYTHING = {100: [" orig", "ami"], 200: [" macrame"], 300: [" falcon", "ry"], 400: [" tea", " blending"]}


@pytest.mark.parametrize("words", [{}, EVERYTHING, {100: [" tea"], 400: [" blending"]}])
def test_where_all_stand_or_none_all_are_sought(words: dict[int, list[str]]) -> None:
    asked, query = ask(words)
    assert query is asked


def test_without_a_list_nothing_changes() -> None:
    asked, query = ask({100: [" macrame"]}, ())
    assert query is asked


def test_numbers_and_words_that_say_nothing_are_no_things() -> None:
    terms = np.array([ID[piece] for piece in ("19", " macrame", " and")])
    tokens = np.concatenate([history({100: [" macrame"]}), terms.astype(np.uint32)])
    for listed in (((0, 1, "19"), (1, 2, "macrame")), ((1, 2, "macrame"), (2, 3, "and"))):
        query = Query(terms, np.ones(3, dtype=np.float32), LENGTH, len(tokens), alternatives=listed)
        assert sought(History(tokens, SPELLING), query) is query


def test_a_history_without_a_full_block() -> None:
    terms = np.array([ID[" macrame"], ID[" tea"]])
    query = Query(terms, np.ones(2, dtype=np.float32), 0, 2, alternatives=((0, 1, "macrame"), (1, 2, "tea")))
    assert sought(History(terms.astype(np.uint32), SPELLING), query) is query
