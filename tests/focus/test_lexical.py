"""The lexical lens on synthetic text of a toy vocabulary: recall of planted facts, bounds, edge cases."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looked import looked

from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.lexical import Found, LexicalLens
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.working_context import Kind

WORDS = 3000
NAMES = 60
DIGITS = [f" {digit}" for digit in range(10)]
VOCABULARY = [
    *(f" word{i}" for i in range(WORDS)),
    *(f" Name{i}" for i in range(NAMES)),
    *DIGITS,
    *(" the", " secret", " code", " of", " is", " What", ".", "?", "\n", " Code", "\ufffd", " write", " wrote"),
]
ID = {text: i for i, text in enumerate(VOCABULARY)}
LENS = LexicalLens(VOCABULARY)


def find(tokens: np.ndarray, query: Query) -> Found:
    return looked(lambda history: LENS.find(history, query), tokens, LENS)


def score(tokens: np.ndarray, query: Query) -> np.ndarray:
    return find(tokens, query).utility


def ids(*texts: str) -> np.ndarray:
    return np.array([ID[text] for text in texts], dtype=np.uint32)


def ask(*texts: str, start: int = 0, end: int = 0) -> Query:
    terms = ids(*texts).astype(np.int64)
    return Query(terms, np.ones(len(terms), dtype=np.float32), start, end)


def zipf(rng: np.random.Generator, length: int) -> np.ndarray:
    """Text whose words, digits and names are as unevenly spread as in real text."""
    order = rng.permutation(WORDS + NAMES + len(DIGITS))
    weights = 1 / (1 + np.arange(len(order)))
    return order[rng.choice(len(order), size=length, p=weights / weights.sum())].astype(np.uint32)


@pytest.mark.parametrize("seed", range(3))
def test_literal_facts_are_recalled_within_512_tokens(seed: int) -> None:
    rng = np.random.default_rng(seed)
    length = 200_000
    history = zipf(rng, length)
    facts = []
    for i, at in enumerate(np.sort(rng.choice(length // 100 - 2, size=12, replace=False)) * 100 + 40):
        digits = [DIGITS[d] for d in rng.integers(0, 10, size=5)]
        name = [f" Name{2 * i}", f" Name{2 * i + 1}"]
        fact = ids(" the", " secret", " code", " of", *name, " is", *digits, ".")
        at = int(at + rng.integers(0, 32))
        history[at : at + len(fact)] = fact
        by_name = [" What", " is", " the", " secret", " code", " of", *name, "?"]
        facts.append((at, at + len(fact), by_name))
        facts.append((at, at + len(fact), [" What", " code", " is", *digits, "?"]))
    for start, end, words in facts:
        tokens = np.concatenate([history, ids(*words)])
        utility = score(tokens, ask(*words, start=length, end=length + len(words)))
        context = allocate(len(tokens), 512, utility, head=32, tail=len(words), gists=False, gap_cost=4)
        raw = np.zeros(len(tokens), dtype=bool)
        for entry in context.entries:
            raw[entry.start : entry.end] |= entry.kind is Kind.RAW
        assert raw[start:end].all(), words


def test_a_block_and_its_neighbours_lead() -> None:
    tokens = np.tile(ids(" word1"), 32 * 20)
    tokens[32 * 9 + 5] = ID[" Name3"]
    utility = score(tokens, ask(" Name3"))
    assert utility.dtype == np.float32
    assert utility[9] == 1
    assert (utility[[8, 10]] >= 0.9).all()
    # Two blocks away: what the neighbour got from half a hit, inherited. Further away: nothing.
    assert (utility[[7, 11]] < 0.75).all()
    assert (utility[[*range(7), *range(12, 20)]] == 0).all()


def test_rare_words_count_more_and_case_does_not() -> None:
    tokens = np.tile(ids(" word1"), 32 * 50)
    tokens[::32][::4] = ID[" code"]
    tokens[32 * 30] = ID[" Name3"]
    assert score(tokens, ask(" Code", " word2", " Name3")).argmax() in range(29, 32)
    both = score(tokens, ask(" Code"))
    assert np.array_equal(both, score(tokens, ask(" code")))
    assert both.max() == 1


def test_a_word_said_again_is_no_more_evidence() -> None:
    """A block that repeats one common word of the question, among neighbours that do, beside one with two of them."""
    tokens = np.tile(ids(" word1"), 32 * 60)
    tokens[32 * 20 : 32 * 23] = ID[" word2"]
    tokens[32 * 40 + np.array([3, 20])] = ids(" word2", " word3")
    tokens[32 * np.arange(50, 60)] = ID[" word3"]
    utility = score(tokens, ask(" word2", " word3"))
    assert utility.argmax() == 40
    assert len({float(utility[i]) for i in (20, 21, 22)}) == 1


def test_another_form_of_a_word_counts_less_than_the_word() -> None:
    tokens = np.tile(ids(" word1"), 32 * 60)
    tokens[32 * 20], tokens[32 * 40] = ids(" wrote", " write")
    found = find(tokens, ask(" write"))
    assert found.utility[40] == 1 and 0.5 < found.utility[20] < 0.9
    assert found.covered == 1 and found.share[20] == pytest.approx(0.7) and found.share[40] == 1
    tokens[32 * 20 + 1] = ID[" write"]
    assert find(tokens, ask(" write")).utility[20] == 1, "both forms in one block"


def test_order_of_the_question_counts() -> None:
    tokens = np.tile(ids(" word1"), 32 * 40)
    tokens[32 * 10 : 32 * 10 + 5] = ids(" 5", " 3", " 1", " 2", " 4")
    tokens[32 * 30 : 32 * 30 + 5] = ids(" 1", " 2", " 3", " 4", " 5")
    utility = score(tokens, ask(" 1", " 2", " 3", " 4", " 5"))
    assert utility.argmax() == 30
    assert utility[10] < 0.7


def test_a_pair_does_not_match_across_the_excluded_question() -> None:
    tokens = np.tile(ids(" word1"), 32 * 4)
    tokens[40:44] = ids(" Name1", " Name2", " Name3", " Name4")
    question = ask(" Name1", " Name2", start=40, end=42)
    assert not score(tokens, question).any(), "the question must not find itself"
    assert score(tokens, ask(" Name1", " Name2", start=128, end=128))[1] == 1


def test_weights_of_terms() -> None:
    tokens = np.tile(ids(" word1"), 32 * 40)
    tokens[32 * 10], tokens[32 * 30] = ID[" Name1"], ID[" Name2"]
    terms = ids(" Name1", ".", " Name2").astype(np.int64)
    utility = score(tokens, Query(terms, np.array([0.25, 1, 1], dtype=np.float32), 0, 0))
    assert utility[30] == 1
    assert utility[10] == pytest.approx(0.25)


@pytest.mark.parametrize("words", [(), (" the", " of", "?"), ("\n", "\ufffd"), (" Name59",)])
def test_nothing_to_find_is_all_zero(words: tuple[str, ...]) -> None:
    utility = score(np.tile(ids(" word1"), 320), ask(*words))
    assert utility.shape == (10,)
    assert not utility.any()


def test_small_histories_and_foreign_ids() -> None:
    assert score(ids(), ask(" Name1")).shape == (0,)
    assert score(np.tile(ids(" Name1"), 31), ask(" Name1")).shape == (0,)
    assert score(np.tile(ids(" Name1"), 33), ask(" Name1")).tolist() == [1.0]
    beyond = np.full(64, len(VOCABULARY) + 1000, dtype=np.uint32)
    foreign = Query(np.array([len(VOCABULARY) + 1000]), np.ones(1, dtype=np.float32), 0, 0)
    assert not score(beyond, foreign).any()
    nothing = LexicalLens([])
    assert not looked(lambda history: nothing.score(history, foreign), beyond, nothing).any()


@settings(max_examples=100, deadline=None)
@given(length=st.integers(0, 3000), seed=st.integers(0, 999), terms=st.integers(0, 40))
def test_bounds(length: int, seed: int, terms: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = zipf(rng, length)
    query = Query(rng.integers(0, len(VOCABULARY), size=terms), rng.random(terms).astype(np.float32), 0, 0)
    utility = score(tokens, query)
    assert utility.shape == (length // 32,)
    assert np.isfinite(utility).all()
    assert (utility >= 0).all()
    assert not utility.any() or utility.max() == 1


def test_speed_on_a_million_tokens() -> None:
    """Worst case: every token of the history is a term of the question. Generous, machines differ."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 40, size=1_000_000).astype(np.uint32)
    query = Query(np.arange(40), np.ones(40, dtype=np.float32), 0, 0)
    LENS.find(History(tokens[:32_000], LENS.spelling), query)
    start = time.perf_counter()
    LENS.find(History(tokens, LENS.spelling), query)
    elapsed = time.perf_counter() - start
    print(f"1 M tokens, all of them terms: {elapsed * 1e3:.0f} ms")
    assert elapsed < 2


@pytest.mark.parametrize("cut", range(5))
def test_what_a_boundary_cuts_has_its_whole_share(cut: int) -> None:
    """``cut`` of four words stand before the boundary; utility counts half of them there, share all of them."""
    history = np.full(32 * 20, ID[" the"], dtype=np.uint32)
    words = [" word1", " Name2", " word3", " Name4"]
    history[32 * 7 - cut : 32 * 7 - cut + 4] = ids(*words)
    history[32 * 15 + 5 : 32 * 15 + 7] = ids(*words[:2])
    found = find(history, ask(" What", *words, "?"))
    assert found.share.dtype == np.float32 and found.share.shape == (20,)
    whole = [6, 7] if 0 < cut < 4 else [5, 6, 7] if cut else [6, 7, 8]
    assert np.flatnonzero(found.share >= 0.999).tolist() == whole
    assert 0.3 < found.share[15] == found.share[14] == found.share[16] < 0.6
    assert not found.share[[0, 3, 10, 12, 19]].any()
    assert found.covered < 0.95 if 0 < cut < 4 else found.covered > 0.999


def test_share_of_little_and_of_nothing() -> None:
    history = np.full(32, ID[" the"], dtype=np.uint32)
    history[3] = ID[" word1"]
    assert find(history, ask(" word1")).share.tolist() == [1]
    assert find(history, ask(" word1", " word2")).share[0] < 1
    assert find(history, ask(" the")).share.tolist() == [0] == find(history, ask()).share.tolist()
    assert find(history[:31], ask(" word1")).share.shape == (0,)
    free = Query(ids(" word1", " word2").astype(np.int64), np.array([1, 0], dtype=np.float32), 0, 0)
    assert find(history, free).share.tolist() == [1], "what need not be there is not missed"
