"""The lens of meaning with the LensNet that comes with the package: other words, no words, other languages."""

import re

import numpy as np
import pytest
from looked import looked

from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.meaning import MeaningLens
from megacontext_vllm.focus.query import Query
from megacontext_vllm.nets.lensnet import load
from megacontext_vllm.tree.nodes import BLOCK

NET = load()
PROSE = (
    "the committee met on Tuesday and agreed that the report would be sent to the members before the end of the year "
    "while the chairman thanked everyone for their patience and moved on to the next question of the long agenda"
)
PAIRS = [
    ("the cobbler repaired boots in winter", "who mended shoes in the cold season"),
    ("burglars stole diamonds from the jeweller", "which gems did the thieves take"),
    ("the trawler netted herring at dawn", "how were the fish caught"),
    ("the dentist pulled three molars", "how many teeth were extracted"),
]


class Text:
    """Words, with the space before them, as tokens."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def tokens(self, text: str) -> list[int]:
        return [self.ids.setdefault(piece, len(self.ids)) for piece in re.findall(r" \w+|[^\w\s]", " " + text)]

    def score(self, tokens: np.ndarray, query: Query) -> np.ndarray:
        words = LexicalLens(list(self.ids))
        lens = MeaningLens(words.spelling, NET, np.array([piece == "." for piece in [*self.ids, ""]]))
        return looked(lambda history: lens.score(history, query), tokens, words, lens.words)


def history(text: Text, facts: list[str], blocks: int = 400) -> tuple[np.ndarray, list[int]]:
    """Prose with the facts in it, uint32 [32 · blocks], and the block of each."""
    rng = np.random.default_rng(0)
    tokens = np.array(text.tokens(PROSE))
    tokens = rng.choice(tokens, BLOCK * blocks)
    where = [40 + 90 * i for i in range(len(facts))]
    for block, fact in zip(where, facts, strict=True):
        piece = text.tokens(fact + ".")
        tokens[block * BLOCK + 5 : block * BLOCK + 5 + len(piece)] = piece
    return tokens.astype(np.uint32), where


def ask(text: Text, question: str, start: int = 0, end: int = 0) -> Query:
    terms = np.array(text.tokens(question), dtype=np.int64)
    return Query(terms, np.ones(len(terms), dtype=np.float32), start, end)


@pytest.mark.parametrize("which", range(len(PAIRS)))
def test_finds_what_says_it_in_other_words(which: int) -> None:
    text = Text()
    tokens, where = history(text, [fact for fact, _ in PAIRS])
    query = ask(text, PAIRS[which][1])
    utility = text.score(tokens, query)
    assert utility.argmax() == where[which]
    assert utility.max() == 1 and utility.min() >= 0 and utility.shape == (400,)


def test_a_fact_across_two_blocks() -> None:
    text = Text()
    tokens, _ = history(text, [])
    piece = text.tokens(PAIRS[0][0])
    tokens[100 * BLOCK - 3 : 100 * BLOCK - 3 + len(piece)] = piece
    query = ask(text, PAIRS[0][1])
    utility = text.score(tokens, query)
    assert set(np.argsort(-utility)[:2].tolist()) == {99, 100}


def test_the_question_does_not_find_itself() -> None:
    text = Text()
    tokens, where = history(text, [PAIRS[0][0]])
    asked = text.tokens(PAIRS[0][1])
    start = len(tokens) - len(asked)
    tokens[start:] = asked
    query = ask(text, PAIRS[0][1], start, len(tokens))
    utility = text.score(tokens, query)
    assert utility.argmax() == where[0] and utility[-1] < 0.5


def test_a_weight_of_the_question_counts() -> None:
    text = Text()
    tokens, where = history(text, [PAIRS[0][0], PAIRS[2][0]])
    terms = np.array(text.tokens("shoes fish"), dtype=np.int64)
    for weights, best in ((np.array([1, 0.2]), 0), (np.array([0.2, 1]), 1)):
        utility = text.score(tokens, Query(terms, weights.astype(np.float32), 0, 0))
        assert utility.argmax() == where[best]


@pytest.mark.parametrize("question", ["", "what was it that they had", "wo liegt dxqhsluß zwkrtl", "4711 + 0.5 ?"])
def test_nothing_to_go_by(question: str) -> None:
    text = Text()
    tokens, _ = history(text, [PAIRS[0][0]])
    query = ask(text, question)
    assert not text.score(tokens, query).any()


def test_small_histories() -> None:
    text = Text()
    query, fact = ask(text, PAIRS[0][1]), np.array(text.tokens(" ".join([PAIRS[0][0]] * 6)), dtype=np.uint32)
    assert text.score(fact[:0], query).shape == (0,)
    assert text.score(fact[:31], query).shape == (0,)
    assert text.score(fact[:33], query).shape == (1,)
    assert not text.score(np.full(64, 10**6, dtype=np.uint32), query).any(), "ids beyond the vocabulary are no words"
