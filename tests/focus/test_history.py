"""A prompt that is indexed, wholly, partly or not at all: the same is found in it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.indexing import index
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.named_text import NamedText
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import word_hash
from megacontext_vllm.focus.words import Words

VOCABULARY = [" or", "in", " Or", " Row", "an", " row", " the", " Mira", "M", "ira", ".", "7", "x", "\n", " said", "é"]
LENS = LexicalLens(VOCABULARY)
TABLE = Words(LENS.spelling, {word: i for i, word in enumerate(["row", "mira", "orin", "said", "é", "x"])})
KEYS = np.array(sorted(map(word_hash, ("orin", "mira", "rowan", "row", "x", "éx"))), dtype=np.uint64)
texts = st.lists(st.integers(0, len(VOCABULARY) + 1), min_size=32, max_size=150)
parts = st.lists(st.tuples(st.integers(0, 160), st.integers(0, 60)), max_size=3)


def query_of(terms: list[int], asking: list[tuple[int, int]]) -> Query:
    (start, end), *own = [(first, first + length) for first, length in asking] or [(0, 0)]
    return Query(np.array(terms), np.ones(len(terms), dtype=np.float32), start, end, own=tuple(own))


@given(texts, st.integers(0, 150), parts, st.sets(st.integers(0, len(VOCABULARY))))
@settings(max_examples=300, deadline=None)
def test_tokens_and_words(text: list[int], before: int, asking: list[tuple[int, int]], wanted: set[int]) -> None:
    tokens = np.array(text, dtype=np.uint32)
    whole = len(tokens) // 32 * 32
    cut = LENS.spelling.boundary(tokens, min(before, whole, len(tokens) - 1))
    query = query_of([0, 1], asking)
    labels = np.full(len(VOCABULARY) + 1, -1, dtype=np.int16)
    labels[list(wanted)] = np.arange(len(wanted), dtype=np.int16)
    expected = labels.take(tokens[:whole], mode="clip")
    query.blank(expected)
    words = LENS.spelling.places(tokens[:whole], KEYS)
    query.blank(words)
    rows = TABLE.rows(tokens[:whole])
    query.blank(rows)
    gains = np.random.default_rng(before).random((3, TABLE.number)).astype(np.float32)
    gains[gains < 0.5] = 0
    for indexed in (None, index(tokens[:cut], LENS, TABLE)) if cut else (None,):
        history = History(tokens, LENS.spelling, indexed)
        at, label = history.labelled(labels, query)
        assert at.tolist() == np.flatnonzero(expected >= 0).tolist() and label.tolist() == expected[at].tolist()
        at, which = history.words(KEYS, query)
        assert at.tolist() == np.flatnonzero(words >= 0).tolist() and which.tolist() == words[at].tolist()
        of = TABLE.of(history, query)
        assert of.counts().tolist() == np.bincount(rows[rows >= 0], minlength=TABLE.number).tolist()
        for gain, most in zip(gains, of.best(gains, whole // 32), strict=True):
            worth = np.where(rows >= 0, gain[rows], 0).reshape(-1, 32)
            assert most.dtype == np.float32 and most.tolist() == worth.max(axis=1).tolist()
        around = of.around(np.array([-8, 3, whole - 10], dtype=np.intp), 20)
        padded = np.pad(rows, 40, constant_values=-1)
        assert around.tolist() == [padded[40 + start : 60 + start].tolist() for start in (-8, 3, whole - 10)]


@given(texts, st.integers(0, 150), parts, st.lists(st.integers(0, len(VOCABULARY) - 1), max_size=6))
@settings(max_examples=300, deadline=None)
def test_named_terms(text: list[int], before: int, asking: list[tuple[int, int]], terms: list[int]) -> None:
    """Numbers of names may differ with an index; which of them are the same may not."""
    tokens = np.array(text, dtype=np.uint32)
    cut = LENS.spelling.boundary(tokens, min(before, len(tokens) // 32 * 32, len(tokens) - 1))
    query = query_of(terms, asking)
    alone = NamedText(History(tokens, LENS.spelling), query, LENS)
    if not cut:
        return
    indexed = NamedText(History(tokens, LENS.spelling, index(tokens[:cut], LENS, TABLE)), query, LENS)
    every = np.arange(len(tokens))
    said, evidence = alone.said(0, len(tokens)), alone.evidence(every)
    other = dict(zip(said.tolist(), indexed.said(0, len(tokens)).tolist(), strict=True))
    assert len(set(other.values())) == len(other) and other.get(-1, -1) == -1
    assert indexed.said(0, len(tokens)).tolist() == [other[term] for term in said.tolist()]
    assert [other.get(term, -1) for term in evidence.tolist()] == indexed.evidence(every).tolist()
    assert {other[term] for term in alone.asked if term in other} == indexed.asked & set(other.values())
    assert len(alone.asked) == len(indexed.asked)
    for term in set(said.tolist()) - {-1}:
        assert alone.counts()[term] == indexed.counts()[other[term]] == (evidence == term).sum()
        assert alone.places({term}).tolist() == indexed.places({other[term]}).tolist()
    assert alone.said(cut - 1, cut + 2).shape == indexed.said(cut - 1, cut + 2).shape


QUESTIONS = (
    "Who destroyed the steamboat Caroline?",
    "Where do they meet now, and how many of them are there?",
    "Origami, macrame or the fur trade: which of these does the text speak about?",
    "What is said of shoes?",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_same_is_found_in_real_text(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, text: str, question: str
) -> None:
    messages = [
        {"role": "user", "content": text[:60_000] + "\n\nWho was the president?"},
        {"role": "assistant", "content": "It was Martin Van Buren, who wrote of it in December."},
        {"role": "user", "content": question},
    ]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    prompt = np.array(rendered, dtype=np.uint32)
    alone = focus.score(prompt)
    answer = np.append(prompt, np.array(tokenizer.encode("The Caroline was taken at Schlosser by"), dtype=np.uint32))
    for part in (0.3, 0.9, 0.998):
        indexed = focus.index_of(prompt[: focus.lens.spelling.boundary(prompt, int(part * len(prompt)))])
        found = focus.score(prompt, indexed)
        assert np.array_equal(found.utility, alone.utility) and found.utility.any()
        assert (found.whole, found.anywhere, found.query.start) == (alone.whole, alone.anywhere, alone.query.start)
        again = focus.score_again(answer, found, indexed).utility
        assert np.array_equal(again, focus.score_again(answer, alone).utility)
