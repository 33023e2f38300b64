"""The stream of real text: where sentences start, and that it goes round."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler


def circle(size: int, sentences: list[int]) -> Filler:
    return Filler(np.arange(size, dtype=np.uint32), np.array(sentences), np.array([0]), "")


def from_text(chat: ChatFormat, text: str) -> tuple[Filler, list[str]]:
    """A filler of the text (and blanks), and what follows each of its sentence starts."""
    ids = chat.encode(text)
    padded = np.concatenate([ids, np.full(-len(ids) % 32, ids[-1])]).astype(np.uint32)
    filler = Filler.from_tokens(padded, chat.tokenizer)
    return filler, [chat.decode(ids[start : start + 2]) for start in filler.sentences if start < len(ids)]


def test_sentences_start_behind_the_end_of_others(chat: ChatFormat) -> None:
    text = 'He came. She went! "Why?" They said so.\n\nIt rained.\nThen "Stop." Nobody did, e.g. him. End'
    _, starts = from_text(chat, text)
    assert starts == [" She went", ' "Why', " They said", "\n\n", "\nThen", " Nobody did", " End"]


def test_abbreviations_end_no_sentence(chat: ChatFormat) -> None:
    _, starts = from_text(chat, "Mr. Smith and Dr. Jones met J. P. Morgan in the U.S. of No. 5. They talked.")
    assert starts == [" They talked"]


def test_every_start_of_the_text_leaves_sentences_on_both_sides(filler: Filler, chat: ChatFormat) -> None:
    assert len(filler.sentences) > 5000
    for start in filler.sentences[::97].tolist():
        before, behind = (chat.decode(filler.read(start + low, start + high)) for low, high in ((-8, 0), (0, 8)))
        assert before.rstrip("\"')]").endswith((".", "!", "?")), before
        assert behind[0].isspace() and not behind.strip()[0].islower(), behind


def test_text_without_sentences_is_refused(tokenizer: Any, chat: ChatFormat) -> None:
    with pytest.raises(EvaluationError, match="prose"):
        Filler.from_tokens(chat.encode("no sentence " * 100), tokenizer)


def test_documents_start_where_they_are_said_to(filler: Filler, chat: ChatFormat) -> None:
    assert len(filler.documents) > 20
    for start in filler.documents.tolist():
        assert chat.decode(filler.read(start, start + 4)).startswith("=== ")


def test_mentions_are_found_in_any_case(filler: Filler) -> None:
    assert filler.mentions("north carolina") and filler.mentions("NORTH CAROLINA")
    assert not filler.mentions("yodelling")


@given(st.integers(1, 9), st.integers(0, 2000), st.data())
def test_reading_goes_round(blocks: int, start: int, data: st.DataObject) -> None:
    size = 32 * blocks
    filler = circle(size, [0])
    stop = start + data.draw(st.integers(0, size))
    assert filler.read(start, stop).tolist() == [i % size for i in range(start, stop)]


@given(st.integers(1, 9), st.sets(st.integers(0, 31), min_size=1), st.integers(0, 900), st.integers(0, 900))
def test_sentences_between_go_round(blocks: int, sentences: set[int], start: int, count: int) -> None:
    size = 32 * blocks
    filler = circle(size, sorted(sentences))
    found = filler.sentences_between(start, start + count).tolist()
    assert found == [i for i in range(start, start + count) if i % size in sentences]


@given(st.integers(1, 9), st.sets(st.integers(0, 31), min_size=1), st.integers(0, 900), st.data())
def test_the_next_aligned_sentence(blocks: int, sentences: set[int], offset: int, data: st.DataObject) -> None:
    size = 32 * blocks
    filler = circle(size, sorted(sentences))
    residue = data.draw(st.sampled_from(sorted(sentences)))
    expected = next(i for i in range(offset, offset + size + 1) if i % size in sentences and i % 32 == residue)
    assert filler.next_aligned(offset, residue + 32 * 5) == expected


def test_no_aligned_sentence_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="longer text"):
        circle(64, [3]).next_aligned(0, 4)
