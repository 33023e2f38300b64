"""Words that a history cuts into other tokens than the question: found all the same, and nothing else is."""

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from looked import looked

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.respelled import find_respelled
from megacontext_vllm.focus.spelling import word_hash
from megacontext_vllm.tree.nodes import BLOCK

VOCABULARY = [
    *("Gl", "ass", "blowing", " glass", " Glass", "GL", "ASS", "BLOWING", "glass", " fine", "Fine", " (", "(glass"),
    *(" Or", "in", " or", " Jon", "as", " Ada", " said"),
    *(" wrote", " write", " wri", "tten", " Write"),
    *("7", "glass7", "'s", ".", " which", "Wh", "ich", " x-y", "é", " É", "\n", " the", ""),
]
ID = {text: i for i, text in enumerate(VOCABULARY)}
LENS = LexicalLens(VOCABULARY)
SPELLING = LENS.spelling


def ids(*texts: str) -> np.ndarray:
    return np.array([ID[text] for text in texts], dtype=np.uint32)


def slow(tokens: list[int]) -> list[str]:
    """The word that begins in each token, in lower case; "" for none, and for one out of tokens with more than that."""
    texts = [(VOCABULARY[token] if token < len(VOCABULARY) else "") or " " for token in tokens]
    plain = [sum(map(str.isalnum, text)) == len(re.findall(r"[^\W\d_]+", text + " a")[0]) for text in texts]
    starts = np.cumsum([0, *map(len, texts)])
    words = [""] * len(tokens)
    for found in re.finditer(r"[^\W\d_]+", "".join(texts)):
        first, last = np.searchsorted(starts, [found.start(), found.end() - 1], side="right") - 1
        words[first] = found[0].casefold() if all(plain[first : last + 1]) else ""
    return words


@given(st.lists(st.integers(0, len(VOCABULARY)), max_size=30))
def test_words_and_places_against_text(tokens: list[int]) -> None:
    expected = [word_hash(word) if word else 0 for word in slow(tokens)]
    assert SPELLING.words(np.array(tokens, dtype=np.int64)).tolist() == expected
    keys = sorted({word_hash("glassblowing"), word_hash("glass"), word_hash("blowing"), word_hash("é")})
    places = SPELLING.places(np.array(tokens, dtype=np.uint32), np.array(keys, dtype=np.uint64))
    assert places.tolist() == [keys.index(key) if key in keys else -1 for key in expected]


def block(tokens: np.ndarray) -> np.ndarray:
    """The tokens, and behind them what is no word, to the end of a block."""
    return np.append(tokens, np.full(-len(tokens) % BLOCK, len(VOCABULARY), dtype=np.uint32)).astype(np.uint32)


def find(question: np.ndarray, history: np.ndarray, start: int = 0, end: int = 0) -> list[tuple[int, int, int]]:
    """(where, slot, slot that follows), slots numbered in order of the question's terms."""
    history = block(history)
    terms = question.astype(np.int64)
    slots = np.arange(len(terms), dtype=np.int16)
    hits = np.full(len(history), -1, dtype=np.int16)
    for slot, term in reversed(list(enumerate(terms.tolist()))):
        hits[history == term] = slot
    query = Query(terms, np.ones(len(terms), dtype=np.float32), start, end)
    query.blank(hits)
    at = np.flatnonzero(hits >= 0)
    found = looked(lambda history: find_respelled(history, at, hits[at], query, slots), history, LENS)
    return list(zip(found.at.tolist(), found.first.tolist(), found.second.tolist(), strict=True))


def test_other_forms_of_a_word_but_not_of_a_name() -> None:
    asked = ids(" which", " write")
    assert find(asked, ids(" wrote", ".", " wri", "tten")) == [(0, 1, -1), (2, 1, -1)]
    assert find(ids(" Write"), ids(" wrote", ".", " wri", "tten")) == []
    terms, slots = asked.astype(np.int64), np.arange(2, dtype=np.int16)
    query = Query(terms, np.ones(2, dtype=np.float32), 0, 0)
    history = block(ids(" Write", " wrote"))
    none = np.zeros(0, dtype=np.intp)
    found = find_respelled(History(history, SPELLING), none, none.astype(np.int16), query, slots)
    assert (found.at.tolist(), found.form.tolist()) == ([0, 1], [False, True])


def test_each_way_to_cut_a_word() -> None:
    asked = ids("Gl", "ass", "blowing")
    whole = [(0, 1), (1, 2), (2, -1)]
    for other in ((" glass", "blowing"), ("GL", "ASS", "BLOWING"), ("(glass", "blowing"), ("Gl", "ASS", "blowing")):
        history = ids("\n", *other, ".")
        assert find(asked, history) == [(1, *slots) for slots in whole], other
    assert find(asked, ids("\n", "Gl", "ass", "blowing", ".")) == [], "as it is asked for: found token by token"
    assert find(ids(" glass"), ids("Gl", "ass", ".")) == [(0, 0, -1)], "one token asked for, two there"
    assert find(asked, ids("Gl", "ass", ".", " glass", ".", "BLOWING")) == [], "not half a word"
    assert find(asked, ids(" glass", "blowing", "7")) == [(0, *slots) for slots in whole], "a number behind is not part"
    assert find(ids("glass7"), ids(" glass", "7")) == find(ids(" glass"), ids("glass7")) == [], "in one token it is"


def test_stop_words_and_the_question_itself() -> None:
    assert find(ids("Wh", "ich"), ids(" which", " which")) == []
    history = ids(" glass", "blowing", " the", " glass", "blowing")
    asked = ids("Gl", "ass", "blowing")
    assert {at for at, _, _ in find(asked, history)} == {0, 3}
    assert {at for at, _, _ in find(asked, history, 2, 5)} == {0}, "the question is no evidence for itself"
    assert find(asked, history[:0]) == [] and find(asked[:0], history) == []


def test_the_lens_finds_it_like_the_word_as_asked() -> None:
    lens = LexicalLens(VOCABULARY)
    tokens = np.tile(ids(" fine", " the", ".", "7"), 8 * 40).astype(np.uint32)
    tokens[5 * BLOCK + 3 : 5 * BLOCK + 6] = ids("Gl", "ass", "blowing")
    tokens[20 * BLOCK + 3 : 20 * BLOCK + 5] = ids(" glass", "blowing")
    tokens[30 * BLOCK + 3] = ID["blowing"]
    asked = ids("Gl", "ass", "blowing").astype(np.int64)
    query = Query(asked, np.ones(3, dtype=np.float32), 0, 0)
    found = looked(lambda history: lens.find(history, query), tokens, lens)
    assert found.utility[5] == found.utility[20] == 1 and found.covered > 0.999
    assert 0 < found.utility[30] < 0.5


def test_a_name_out_of_words_that_say_nothing_counts_as_a_whole() -> None:
    lens = LexicalLens(VOCABULARY)
    filler = [" fine", " which", "\n", "."] * 8
    parts = [" Or", ".", " said", "in", ".", " Jon", "\n", " or", " glass"]

    def history(*name: str) -> np.ndarray:
        blocks = [filler, [*name, " said", " glass"], filler, parts, filler]
        return np.concatenate([ids(*[*texts, *filler][:BLOCK]) for texts in blocks * 3])

    def best(asked: tuple[str, ...], name: tuple[str, ...]) -> tuple[set[int], float]:
        terms = ids(*asked, " glass").astype(np.int64)
        query = Query(terms, np.ones(len(terms), dtype=np.float32), 0, 0)
        found = looked(lambda text: lens.find(text, query), history(*name), lens)
        return set(np.flatnonzero(found.utility == 1).tolist()), found.covered

    for name in ((" Or", "in"), (" Jon", "as")):
        where, covered = best(name, name)
        assert where == {1, 6, 11} and covered > 0.999, "not where only 'or' or 'glass' stands"
    assert best((" Or", "in"), (" Ada",))[1] < 0.9 < best((" Ada",), (" Ada",))[1], "a name that is nowhere is missed"
    assert best((" Or",), (" Or", "in"))[0] >= {1, 3}, "a stop word by itself says nothing"
