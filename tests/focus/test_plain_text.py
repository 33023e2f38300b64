"""Prompts in any script: marks, and characters that are several tokens."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.focus.plain_text import CUT, fitting, length, pieces, plain


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("谁看守灯塔？请回答。", "谁看守灯塔?请回答."),
        ("من يحرس المنارة؟", "من يحرس المنارة?"),
        ("Ποιος φυλάει τον φάρο; Απάντησε.", "Ποιος φυλάει τον φάρο? Απάντησε."),
        ("int a; Ποιος\n", "int a; Ποιος\n"),
        ("let r = π;\n", "let r = π;\n"),
        ("Where is it? Here.", "Where is it? Here."),
        ("माधो कहाँ है। बताइए", "माधो कहाँ है. बताइए"),
    ],
)
def test_marks_of_other_scripts(text: str, expected: str) -> None:
    assert plain(text) == expected
    assert len(plain(text)) == len(text)


TEXTS = ["Where is it?", "档案室的钥匙放在哪里？", "한산 천문대 🙂 abc", "Πού είναι;", "", "a🙂"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_are_whole_characters(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    tokens = tokenizer.encode(text)
    found = pieces(tokens, tokenizer.decode)
    assert len(found) == len(tokens)
    assert "".join(found) == plain(text)
    assert not any(CUT in piece for piece in found)


def test_what_is_no_text_has_pieces_too(tokenizer: PreTrainedTokenizerBase) -> None:
    """Bytes without a meaning, as a model may say them."""
    tokens = [token for token in tokenizer.encode("档案室的钥匙") if tokenizer.decode([token]) == CUT]
    noise = np.random.default_rng(0).choice(tokens, 60).tolist()
    assert len(pieces(noise, tokenizer.decode)) == 60
    assert pieces(noise[:1], tokenizer.decode) == [CUT]


def test_length_is_that_in_tokens_made_for_the_script() -> None:
    assert length(["Who", " kept", " it", "?"]) == 4
    assert length(["", "", "灯", "", "", "塔"]) == 0.5
    assert length(["Größe"]) == 1
    assert length([]) == 0
    assert fitting(["", "", "灯"] * 40, 5) == 62  # 20 characters and what begins the next
    assert fitting(["a"] * 9, 5) == 5
    assert fitting(["a"] * 3, 5) == 3
