"""Which texts stay indexed, and that no namespace sees another's."""

import numpy as np
import numpy.typing as npt
import pytest

from megacontext_vllm.engine import text_indexes
from megacontext_vllm.engine.text_indexes import TextIndexes
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.text_index import TextIndex

WORDS = [f" word{i}" for i in range(900)]
LONG, END = 1000, 100


class Counting(Focus):
    """How many texts were indexed, on any focus."""

    made = 0

    def index_of(self, tokens: npt.NDArray[np.uint32]) -> TextIndex:
        Counting.made += 1
        return super().index_of(tokens)


@pytest.fixture
def focus(monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(Counting, "made", 0)
    monkeypatch.setattr(text_indexes, "LONG", LONG)
    monkeypatch.setattr(text_indexes, "_END", END)
    return Counting(LexicalLens(WORDS), frozenset(), lambda ids: "".join(WORDS[i] for i in ids), 64, 128, gap_ids=(1,))


def text(length: int, seed: int = 0) -> npt.NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 900, length).astype(np.uint32)


def test_another_question_on_the_same_text(focus: Counting) -> None:
    indexes = TextIndexes(focus, 10**9)
    for seed in range(3):
        found = indexes.of("a", np.concatenate([text(5000), text(40, 1 + seed)]))
        assert found is not None and len(found.tokens) == 5000 + 40 - END
        assert np.array_equal(found.tokens, text(5000)[: len(found.tokens)])
    assert focus.made == 1
    indexes.of("b", np.concatenate([text(5000), text(40)]))
    assert focus.made == 2, "another namespace"
    changed = text(5000)
    changed[4000] ^= 1
    indexes.of("a", changed)
    assert focus.made == 3
    indexes.of("a", text(4500))
    assert focus.made == 4, "a text that ends before what was indexed"


def test_a_short_text_is_not_indexed(focus: Counting) -> None:
    assert TextIndexes(focus, 10**9).of("a", text(LONG - 1)) is None and not focus.made
    assert TextIndexes(focus, 10**9).of("a", text(LONG)) is not None


def test_a_chat_that_grows_is_indexed_now_and_then(focus: Counting) -> None:
    indexes, everything = TextIndexes(focus, 10**9), text(40_000)
    for length in range(1000, 40_000, 200):
        found = indexes.of("a", everything[:length])
        assert found is not None and np.array_equal(found.tokens, everything[: len(found.tokens)])
        assert length - len(found.tokens) <= max(LONG, len(found.tokens) // 8) + 200
    assert 10 < focus.made < 40
    assert len(indexes._known) == 1, "the longer one takes the place of the shorter"


def test_the_least_recently_used_goes_first_and_the_last_stays(focus: Counting) -> None:
    indexes = TextIndexes(focus, max_tokens=2 * (3000 - END + text_indexes._OF_ITS_OWN))
    for seed in (0, 1, 0, 2, 0):
        indexes.of("a", text(3000, seed))
    assert focus.made == 3
    indexes.of("a", text(3000, 1))
    assert focus.made == 4
    small = TextIndexes(focus, max_tokens=1)
    small.of("a", text(3000))
    small.of("a", text(3000))
    assert focus.made == 5


def test_chats_with_one_system_message_are_told_apart_by_their_ends(
    focus: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    indexes, system = TextIndexes(focus, 10**9), text(3000)
    chats = [np.concatenate([system, text(2000, seed)]) for seed in range(1, 20)]
    made = [indexes.of("a", chat) for chat in chats]
    compared = []
    equal = np.array_equal
    monkeypatch.setattr(np, "array_equal", lambda a, b: compared.append(len(a)) or equal(a, b))
    for chat, index in zip(chats, made, strict=True):
        assert indexes.of("a", np.concatenate([chat, text(40)])) is index
    assert focus.made == len(chats)
    assert sum(length > END for length in compared) == len(chats)


@pytest.fixture
def words(focus: Counting) -> Counting:
    """A focus whose second token goes on with the word of the one before."""
    lens = LexicalLens([" begin", "go", "."])
    return Counting(lens, frozenset(), lambda ids: "", 64, 128, gap_ids=(1,))


def test_no_word_is_cut_in_two(words: Counting) -> None:
    tokens = np.ones(2000, dtype=np.uint32)
    found = TextIndexes(words, 10**9).of("a", tokens)
    assert found is None, "one word of 2,000 tokens is not looked through for its start"
    tokens[1830] = 0
    found = TextIndexes(words, 10**9).of("a", tokens)
    assert found is not None and len(found.tokens) == 1830


def test_a_prompt_that_goes_on_with_a_word_where_the_index_ends(words: Counting) -> None:
    indexes, tokens = TextIndexes(words, 10**9), np.full(2000, 2, dtype=np.uint32)
    cut = 2000 - END
    tokens[cut - 1 : cut + 1] = 0, 2
    first = indexes.of("a", tokens)
    assert first is not None and len(first.tokens) == cut and words.made == 1
    other = tokens.copy()
    other[cut] = 1
    second = indexes.of("a", other)
    assert second is not None and len(second.tokens) == cut - 1 and words.made == 2
    assert indexes.of("a", tokens) is not None and words.made == 2


def test_an_index_keeps_no_more_than_it_is_of(focus: Counting) -> None:
    prompt = text(5000)
    found = TextIndexes(focus, 10**9).of("a", prompt)
    assert found is not None and found.tokens.base is None and len(found.tokens) < len(prompt)
