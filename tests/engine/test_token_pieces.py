"""Tokens made in pieces are the tokens of the whole text, for tokenizers of every make and some that defy cutting."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from megacontext_vllm.engine.token_pieces import AGREE, MARK_EVERY, OVERLAP, PIECE, TOGETHER, Encoder, tokenise
from megacontext_vllm.engine.tokenizing import encoder_of

SMALL = 2 * OVERLAP  # the smallest pieces: as many cuts as possible
SPECIAL = "<|im_end|>"


class Counting:
    """An encoder that remembers the lengths of the texts that it was given."""

    def __init__(self, encoder: Encoder) -> None:
        self.characters: list[int] = []
        self.encoder = Encoder(self._encode, encoder.at_words)
        self._inner = encoder

    def _encode(self, parts: list[str]):
        assert len(parts) <= TOGETHER
        self.characters += map(len, parts)
        return self._inner.encode(parts)

    def in_pieces(self, piece: int) -> bool:
        return max(self.characters) <= 1.5 * piece + 2 * OVERLAP


# ---- tokenizers of every make ---------------------------------------------------------------------------------------


def _trained(tokenizer: Tokenizer, trainer: trainers.Trainer, text: str) -> Tokenizer:
    tokenizer.train_from_iterator(text[:150_000].splitlines(), trainer)
    return tokenizer


def _metaspace(text: str) -> Tokenizer:
    """As Gemma and Mistral have it: the first word of whatever is tokenised gets a space in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=800, special_tokens=["<unk>"]), text)


def _one_word(text: str) -> Tokenizer:
    """As Llama 2 has it: nothing splits the text, all of it is one word."""
    tokenizer = _metaspace(text)
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def _lowercase(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet), text)


def _digits_by_three(text: str) -> Tokenizer:
    """As Llama 3 and Qwen have it: where the digits of a long number are cut depends on where it begins."""
    tokenizer = _lowercase(text)
    tokenizer.normalizer = normalizers.NFC()
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    return tokenizer


def _unigram(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return _trained(
        tokenizer, trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>"), text
    )


def _word_piece(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _trained(tokenizer, trainers.WordPieceTrainer(vocab_size=800, special_tokens=["[UNK]"]), text)


MAKES: dict[str, Callable[[str], Tokenizer]] = {
    make.__name__[1:]: make for make in (_metaspace, _one_word, _lowercase, _digits_by_three, _unigram, _word_piece)
}


@pytest.fixture(scope="session")
def encoder_named(model_dir: Path, text: str) -> Callable[[str], Encoder]:
    @cache
    def named(name: str) -> Encoder:
        if name == "default":
            return encoder_of(AutoTokenizer.from_pretrained(model_dir))
        tokenizer = MAKES[name](text)
        tokenizer.add_special_tokens([SPECIAL, AddedToken("<|tool|>", lstrip=True, rstrip=True)])
        return encoder_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer))

    return named


every_make = pytest.mark.parametrize("make", ["default", *MAKES])


@every_make
def test_real_text_is_tokenised_in_pieces(make: str, encoder_named: Callable[[str], Encoder], text: str) -> None:
    counting = Counting(encoder_named(make))
    part = text[: 5 * PIECE]
    tokens = tokenise(part, counting.encoder)
    whole = encoder_named(make).encode([part])[0]
    assert tokens.ids.tolist() == whole.ids
    assert counting.in_pieces(PIECE) and sum(counting.characters) <= len(part) + 8 * OVERLAP
    assert len(tokens.marks) > 0.9 * len(part) / MARK_EVERY
    assert (np.diff(tokens.marks, axis=0) > 0).all()
    for character, token in tokens.marks.tolist():
        assert whole.token_to_chars(token)[0] == character


@every_make
def test_of_a_known_text_only_the_end_is_tokenised(
    make: str, encoder_named: Callable[[str], Encoder], text: str
) -> None:
    """Also where it was so before: the marks do not become fewer."""
    counting = Counting(encoder_named(make))
    begin, new = text[: 3 * PIECE], " and what was never said.\nWho?"
    known = tokenise(begin + text[-100:], counting.encoder)
    for _ in range(4):
        counting.characters.clear()
        known = tokenise(begin + new, counting.encoder, known, len(begin))
        assert sum(counting.characters) < MARK_EVERY + 3 * OVERLAP + len(new)
    assert known.ids.tolist() == encoder_named(make).encode([begin + new])[0].ids


FRAGMENTS = [
    " ", "\n", "\r\n", "\t", "\n\n", " \n", "  x", "a", "ab", "=", "-", "1", "123", "0.5, ", "é", "e\u0301", "\u0301",
    "日本語", "。", "ไทย", "哈", "👩‍👩‍👧‍👦", "🤷🏽‍♀️", "🇩🇪", "…", "ß", "İ", "ﬁ", "\u200b", "\u3000", "The ", "word",
    "CamelCase", SPECIAL, f" {SPECIAL}\n", "<|tool|>", "  <|tool|>  ", "<|im_", "Zm9vYmFy", "\u0000",
]  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> str:
    """Runs of one fragment, which may be longer than a piece, between stretches of real text and of anything."""
    real = (Path(__file__).parent / "test_token_pieces.py").read_text(encoding="utf-8")
    run = st.builds(lambda what, times: what * times, st.sampled_from(FRAGMENTS), st.integers(1, 4000))
    prose = st.builds(lambda at, size: real[at : at + size], st.integers(0, 5000), st.integers(1, 4000))
    line = st.builds(lambda at, size: re.sub(r"\s+", " ", real[at : at + size]), st.integers(0, 500), st.just(4000))
    anything = st.text(st.characters(codec="utf-8"), max_size=40)
    parts = draw(st.lists(st.one_of(run, prose, prose, line, anything), min_size=2, max_size=8))
    return "".join(parts)


@every_make
@settings(max_examples=25, deadline=None)
@given(part=texts())
def test_any_text(make: str, encoder_named: Callable[[str], Encoder], part: str) -> None:
    encoder = encoder_named(make)
    assert tokenise(part, encoder, piece=SMALL).ids.tolist() == encoder.encode([part])[0].ids


@every_make
@settings(max_examples=25, deadline=None)
@given(before=texts(), old=texts(), new=texts())
def test_what_is_known_is_the_first_piece(
    make: str, encoder_named: Callable[[str], Encoder], before: str, old: str, new: str
) -> None:
    encoder = encoder_named(make)
    known = tokenise(before + old, encoder, piece=SMALL)
    tokens = tokenise(before + new, encoder, known, len(before), piece=SMALL)
    whole = encoder.encode([before + new])[0]
    assert tokens.ids.tolist() == whole.ids
    assert all(whole.token_to_chars(token)[0] == character for character, token in tokens.marks.tolist())


@every_make
@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_a_fragment_across_every_cut(
    make: str, fragment: str, encoder_named: Callable[[str], Encoder], text: str
) -> None:
    """Once as it is, and once as a run that the overlap just holds."""
    encoder = encoder_named(make)
    for run in (fragment, fragment * (OVERLAP // len(fragment))):
        part = ""
        for cut in range(SMALL, 5 * SMALL, SMALL):
            begin = cut - len(run) // 2 - cut // SMALL % 3
            part += text[len(part) : begin] + run
        part += text[:SMALL]
        assert tokenise(part, encoder, piece=SMALL).ids.tolist() == encoder.encode([part])[0].ids


# ---- joining needs more than equal tokens ---------------------------------------------------------------------------


def test_a_long_word_of_a_unigram_model_is_not_cut() -> None:
    """Of two ways of equal weight it takes the one that rounding favours, and that hangs on all that was before."""
    weights = {"<unk>": 0.0, "a": -2.8, "b": -3.7, "bb": -5.8, "aaa": -5.1, "ab": -3.3, "aab": -6.5}
    tokenizer = Tokenizer(models.Unigram(list(weights.items()), unk_id=0, byte_fallback=False))
    part = "".join("a" * (i % 7) + "b" * (i % 3) for i in range(8000))
    encoder = encoder_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    whole = encoder.encode([part])[0].ids
    assert encoder.at_words and tokenise(part, encoder, piece=SMALL).ids.tolist() == whole
    assert tokenise(part, Encoder(encoder.encode, at_words=False), piece=SMALL).ids.tolist() != whole


class Fake:
    """An encoding of one token per character, in words of so many."""

    def __init__(self, ids: list[int], word: int = 1) -> None:
        self.ids = ids
        self._word = word

    def token_to_chars(self, token_index: int) -> tuple[int, int]:
        return token_index, token_index + 1

    def token_to_word(self, token_index: int) -> int:
        return token_index // self._word


def by_length(part: str) -> Fake:
    """Every token depends on the length of the whole."""
    return Fake([len(part) + ord(character) for character in part])


def by_bracket(part: str) -> Fake:
    """Every token depends on what the last bracket before it was, be it ever so far back."""
    ids, inside = [], False
    for character in part:
        inside = (inside or character == "(") and character != ")"
        ids.append(2 * ord(character) + inside)
    return Fake(ids)


@pytest.mark.parametrize("at_words", [False, True])
def test_tokens_that_depend_on_all_of_the_text(at_words: bool) -> None:
    counting = Counting(Encoder(lambda parts: [by_length(part) for part in parts], at_words))
    for length in (1, SMALL, 3 * SMALL, 20 * SMALL + 7):
        part = ("line of words\n" * 5000)[:length]
        assert tokenise(part, counting.encoder, piece=SMALL).ids.tolist() == by_length(part).ids
    assert counting.characters[-1] == length  # the whole, after all


@settings(max_examples=30, deadline=None)
@given(brackets=st.dictionaries(st.integers(0, 30_000), st.sampled_from("()"), max_size=12))
def test_tokens_that_depend_on_what_is_far_back(brackets: dict[int, str]) -> None:
    characters = list("line of words\n" * 2200)
    for at, bracket in brackets.items():
        characters[at] = bracket
    part = "".join(characters)
    encoder = Encoder(lambda parts: [by_bracket(each) for each in parts], at_words=False)
    assert tokenise(part, encoder, piece=SMALL).ids.tolist() == by_bracket(part).ids
    known = tokenise(part[:20_000] + "(" + part, encoder, piece=SMALL)
    assert tokenise(part, encoder, known, 20_000, piece=SMALL).ids.tolist() == by_bracket(part).ids


def test_only_the_pieces_beside_an_uncertain_cut_are_tokenised_again() -> None:
    """A bracket before the third cut closes behind it, and of the two pieces the second does not see it open."""
    characters = list("line of words\n" * 2200)
    characters[3 * SMALL - OVERLAP - 9], characters[3 * SMALL + OVERLAP + 9] = "(", ")"
    part = "".join(characters)
    counting = Counting(Encoder(lambda parts: [by_bracket(each) for each in parts], at_words=False))
    assert tokenise(part, counting.encoder, piece=SMALL).ids.tolist() == by_bracket(part).ids
    assert [size for size in counting.characters if size > 2.5 * SMALL] == [2 * SMALL + 2 * OVERLAP]


def test_a_known_text_that_does_not_hold_is_left_out() -> None:
    """Nor is all that it was said to cover made one piece."""
    part = "line of words\n" * 2200
    counting = Counting(Encoder(lambda parts: [by_bracket(each) for each in parts], at_words=False))
    known = tokenise("(" + part[1:], counting.encoder, piece=SMALL)
    counting.characters.clear()
    assert tokenise(part, counting.encoder, known, 20_000, piece=SMALL).ids.tolist() == by_bracket(part).ids
    assert counting.in_pieces(SMALL)


def test_equal_tokens_from_another_character_on_do_not_join() -> None:
    """All tokens are equal, but words are of three characters, counted from where a piece begins."""
    counting = Counting(Encoder(lambda parts: [Fake([1] * len(part), word=3) for part in parts], at_words=True))
    tokenise("a" * (5 * SMALL), counting.encoder, piece=SMALL)
    assert not counting.in_pieces(SMALL)


@pytest.mark.parametrize(("off", "joined"), [(-AGREE - 1, True), (-AGREE, False), (AGREE - 1, False), (AGREE, True)])
def test_so_many_tokens_must_agree_on_either_side(off: int, joined: bool) -> None:
    """The third of the pieces, all made in one call, has another token than the second, ``off`` from their cut."""

    def encode(parts: list[str]) -> list[Fake]:
        encodings = [Fake([ord(character) for character in part]) for part in parts]
        if len(parts) > 2:
            encodings[2].ids[OVERLAP + off] += 1
        return encodings

    counting = Counting(Encoder(encode, at_words=False))
    tokenise("line of words\n" * 2200, counting.encoder, piece=SMALL)
    assert counting.in_pieces(SMALL) == joined


# ---- transformers' tokenizers ---------------------------------------------------------------------------------------


def test_what_the_tokenizer_was_last_asked_for_makes_no_difference(model_dir: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    part = text[: 2 * PIECE]
    whole = tokenizer(part, add_special_tokens=False)["input_ids"]
    tokenizer("It stays cut off at this length.", truncation=True, max_length=3, padding="max_length")
    assert tokenise(part, encoder_of(tokenizer)).ids.tolist() == whole
