"""From a prompt to its Working Context: what is pinned, what happens where gists do not fit, any tokenizer."""

from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.errors import BudgetError
from megacontext_vllm.focus.focus import Focus, Scored
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Joined, Spelling
from megacontext_vllm.focus.vocabulary import special_ids, surface_strings
from megacontext_vllm.focus.working_context import Kind

WORDS = [f" word{i}" for i in range(1000)]


class Tokenizer:
    """What is asked of a tokenizer, and no more. ``<s>`` is 1000, ``<role>`` 1001, the marker 1002 1003."""

    all_special_ids = (1000,)

    @property
    def added_tokens_decoder(self) -> dict[int, SimpleNamespace]:
        return {1001: SimpleNamespace(special=True), 1002: SimpleNamespace(special=False)}

    def get_vocab(self) -> dict[str, int]:
        return {text: i for i, text in enumerate([*WORDS, "<s>", "<role>", "[", "]"])}

    def decode(self, ids: list[int]) -> str:
        return "".join([*WORDS, "<s>", "<role>", "[", "]"][i] for i in ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert text == "[]" and not add_special_tokens
        return [1002, 1003]


@pytest.fixture(scope="module")
def focus() -> Focus:
    return Focus.of(Tokenizer(), MegaContextConfig(gap_marker="[]"))


def history(length: int, question: int = 20) -> np.ndarray:
    """Words, with a question of ``question`` of them after the last special token."""
    tokens = np.random.default_rng(length).integers(0, 900, length)
    tokens[length - question - 1] = 1000
    return tokens.astype(np.uint32)


def pinned(context: object, reason: str) -> int:
    return sum(entry.cost for entry in context.entries if entry.reason == reason)  # type: ignore[attr-defined]


def test_any_tokenizer(focus: Focus) -> None:
    assert special_ids(Tokenizer()) == {1000, 1001}
    marked = Tokenizer()
    added = {7: SimpleNamespace(special=False, content="<｜User｜>"), 8: SimpleNamespace(special=False, content="<x>")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tokenizer, "added_tokens_decoder", added)
        assert special_ids(marked) == {1000, 7}, "marks of turns that nobody called special"
    assert surface_strings(Tokenizer())[:2] == [" word0", " word1"]
    assert len(surface_strings(Tokenizer())) == 1004
    in_one = SimpleNamespace(get_vocab=Tokenizer().get_vocab, batch_decode=lambda rows: [str(row) for row in rows])
    assert surface_strings(in_one)[7] == "[7]"
    assert focus.gap_ids == (1002, 1003) and (focus.head_tokens, focus.tail_tokens) == (64, 128)


def test_finds_what_is_asked(focus: Focus) -> None:
    tokens = history(20_000)
    tokens[7000:7003] = [950, 951, 952]
    tokens[-15:-12] = [950, 951, 952]
    scored = focus.score(tokens)
    assert scored.length == 20_000 and scored.query.start >= 19_980
    assert int(scored.utility.argmax()) == 7000 // 32
    context = focus.allocate(scored, 512, gists=False)
    assert any(entry.kind is Kind.RAW and entry.start <= 7000 < entry.end for entry in context.entries)


@pytest.mark.parametrize("gists", [False, True])
def test_what_is_pinned(focus: Focus, gists: bool) -> None:
    scored = focus.score(history(20_000))
    assert pinned(focus.allocate(scored, 1024, gists=gists), "head") == 64
    assert pinned(focus.allocate(scored, 1024, gists=gists), "tail") == 128
    small = focus.allocate(scored, 192, gists=False)
    assert pinned(small, "head") == 32 and pinned(small, "tail") == 64, "room for evidence whatever the tail"
    # A message that the template closes: an eighth of the window at most for either end.
    tokens = history(20_000)
    tokens[-3:] = 1001, 1, 1001
    closed = focus.score(tokens)
    small = focus.allocate(closed, 600, gists=gists)
    assert pinned(small, "head") == 64 and pinned(small, "tail") == 64
    smaller = focus.allocate(closed, 192, gists=False)
    assert pinned(smaller, "head") == 32 and pinned(smaller, "tail") == 32
    longer = Focus(focus.lens, focus.special_ids, focus.decode, head_tokens=0, tail_tokens=200, gap_ids=(1,))
    context = longer.allocate(scored, 2048, gists=gists)
    assert pinned(context, "head") == 0 and pinned(context, "tail") == 224


@pytest.mark.parametrize(
    ("before", "behind", "anywhere", "tail"),
    [
        (5000, 8, True, 0),  # a document in front of the question, in a closed message: its end is like any part
        (5000, 8, False, 128),  # unless nothing was found: the end of a log says why it failed
        (127, 8, True, 128),  # what was said before, too, stands in so short a tail
        (0, 8, True, 128),  # a turn of a chat
        (5000, 0, True, 128),  # a text that just ends is to be gone on with
    ],
)
def test_the_end_of_a_document_is_not_pinned(
    focus: Focus, before: int, behind: int, anywhere: bool, tail: int
) -> None:
    length, asked = 32 * 600, 32
    start = length - asked - behind
    terms = np.arange(asked)
    query = Query(terms, np.ones(asked, dtype=np.float32), start, length - behind, document=before)
    utility = np.zeros(length // 32, dtype=np.float32)
    utility[300] = 1
    context = focus.allocate(Scored(length, query, utility, anywhere=anywhere), 1024, gists=False)
    assert pinned(context, "tail") == max(tail, 32 * -(-(asked + behind) // 32))
    assert all(entry.kind is Kind.RAW for entry in context.entries if entry.end > start), "the question is all there"


@pytest.mark.parametrize("gists", [False, True])
@pytest.mark.parametrize("window", [128, 160, 192, 256, 1024])
@pytest.mark.parametrize("answer", [33, 1000, 40_000])
def test_an_answer_under_way(focus: Focus, window: int, answer: int, gists: bool) -> None:
    tokens = np.concatenate([history(20_000), np.random.default_rng(1).integers(0, 900, answer).astype(np.uint32)])
    tokens[7000:7003] = tokens[19_985:19_988] = [950, 951, 952]
    tokens[3000:3002] = tokens[-2:] = [960, 961]  # what the answer speaks of now
    scored = focus.score_again(tokens, focus.score(tokens[:20_000]))
    assert scored.query.start == focus.score(tokens[:20_000]).query.start, "the question is the prompt's"
    best = np.argsort(-scored.utility)[:6].tolist()
    assert 7000 // 32 in best and scored.utility[7000 // 32] > scored.utility[3000 // 32] > 0
    context = focus.allocate(scored, window, gists=gists)
    raw = {entry.index for entry in context.entries if entry.kind is Kind.RAW}
    question = range(scored.query.start // 32, min(20_000 // 32, scored.query.start // 32 + window // 128))
    assert raw >= set(question)
    end = next(entry for entry in reversed(context.entries) if entry.kind is not Kind.RAW).end
    assert len(tokens) - end >= min(answer, window // 4 - 31), "and the answer's end, to go on from"


def test_where_gists_leave_no_room_spans_are_hidden(focus: Focus, caplog: pytest.LogCaptureFixture) -> None:
    scored = focus.score(history(1_000_001))
    context = focus.allocate(scored, 128, gists=True)
    assert {entry.kind for entry in context.entries} == {Kind.RAW, Kind.GAP}
    assert context == focus.allocate(scored, 128, gists=False)
    assert "unexpanded spans are hidden in this request" in caplog.text


def test_sealed_nodes_are_not_expanded(focus: Focus) -> None:
    tokens = history(20_000)
    tokens[7000:7003] = tokens[-15:-12] = [950, 951, 952]
    scored = focus.score(tokens)
    context = focus.allocate(scored, 512, gists=True, sealed=[(2, 6)])
    assert any((entry.kind, entry.level, entry.index) == (Kind.GIST, 2, 6) for entry in context.entries)


def test_a_window_that_holds_nothing(focus: Focus) -> None:
    wide = Focus(LexicalLens(WORDS), frozenset({1000}), focus.decode, 64, 128, gap_ids=tuple(range(100)))
    with pytest.raises(BudgetError, match="Raise the window"):
        wide.allocate(wide.score(history(20_000)), 128, gists=False)


def test_a_tokenizer_that_drops_the_first_space() -> None:
    """SentencePiece: one token alone is decoded without its space, and without it nobody knows where a word begins."""
    pieces = {"<unk>": 0, "▁code": 1, "code": 2, "a": 3, "▁": 4, ",": 5}
    backend = Backend(WordLevel(pieces, unk_token="<unk>"))
    backend.decoder = Metaspace()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert fast.decode([1]) == "code", "or this test shows nothing"
    assert surface_strings(fast)[1:] == [" code", "code", "a", " ", ","]


def test_one_place_that_has_it_all_is_shown_with_what_stands_around_it(focus: Focus) -> None:
    """Thirty sentences differ in one word: the right one, and the text that it stands in, not the other ones."""
    tokens = history(60_000, question=4)
    tokens[:-5] %= 40  # so few words that what stands in the sentence is nothing to go by
    at = 1000 + 1800 * np.arange(30)
    for i, place in enumerate(at.tolist()):
        tokens[place : place + 4] = [890, 891, 892, 860 + i]
    tokens[-4:] = [890, 891, 892, 877]
    context = focus.allocate(focus.score(tokens), 2048, gists=False)
    shown = np.zeros(len(tokens), dtype=bool)
    for entry in context.entries:
        shown[entry.start : entry.end] |= entry.kind is Kind.RAW
    right = at[17]
    assert shown[right - 25 * 32 : right + 25 * 32].all()
    assert sum(bool(shown[place]) for place in at.tolist()) <= 8


class Listing(Tokenizer):
    """The same, with words of letters, and what things are listed with."""

    WORDS = tuple(f" {''.join('bcdfghklmn'[int(digit)] for digit in str(i))}" for i in range(1000))
    WORDS += ("<s>", "<role>", "[", "]", ",", " or", ":", " which", "?")

    def get_vocab(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.WORDS)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.WORDS[i] for i in ids)


def test_of_a_list_the_one_thing_that_stands_is_shown_with_what_stands_around_it() -> None:
    """The two that stand nowhere would else be two thirds of the question, and no place be the one that answers."""
    focus = Focus.of(Listing(), MegaContextConfig(gap_marker="[]"))
    listed = [861, 1004, 862, 1005, 863, 1006, 1007, 30, 1008]  # one, another or a third: which of a common word?
    tokens = history(60_000, question=len(listed))
    tokens[: -len(listed) - 1] %= 40
    tokens[[30_000, 30_100]] = 862
    tokens[-len(listed) :] = listed
    context = focus.allocate(focus.score(tokens), 2048, gists=False)
    raw = [entry.index for entry in context.entries if entry.kind is Kind.RAW and entry.reason == "lens"]
    place = 30_000 // 32
    assert set(range(place - 20, place + 20)) <= set(raw)


def test_whether_what_answers_was_found(focus: Focus) -> None:
    tokens = history(20_000, question=4)
    tokens[-4:] = [950, 951, 952, 953]
    assert not focus.score(tokens).anywhere, "no place has all of it"
    tokens[7000:7004] = [950, 951, 952, 953]
    assert focus.score(tokens).anywhere


class Pieces(Tokenizer):
    """Words of several tokens. ``<s>`` is the last."""

    PIECES = (" glass", "blow", "ing", " Gl", "ass", " ship", "s", " sail", "or", ".", " the", " boat", "[", "]", "<s>")
    all_special_ids = (14,)

    @property
    def added_tokens_decoder(self) -> dict[int, SimpleNamespace]:
        return {}

    def get_vocab(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.PIECES)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.PIECES[i] for i in ids)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [12, 13]


def test_both_lenses_use_the_words_that_are_joined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    focus = Focus.of(Pieces(), MegaContextConfig(gap_marker="[]"))
    tokens = np.random.default_rng(3).integers(0, 12, 100 * 32 + 7).astype(np.uint32)
    tokens[-9:] = [14, 10, 0, 1, 2, 5, 6, 10, 7]
    lengths = []
    join = Spelling.joined

    def counted(self: Spelling, tokens: np.ndarray) -> Joined:
        lengths.append(len(tokens))
        return join(self, tokens)

    monkeypatch.setattr(Spelling, "joined", counted)
    focus.score(tokens)
    assert [length for length in lengths if length > 100] == [100 * 32], "of the history, once"
