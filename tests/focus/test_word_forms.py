"""The forms that a word of a question may have in a text."""

import pytest

from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.focus.word_forms import other_forms

SAME = [
    "write writes writing wrote written", "keep keeps keeping kept", "man men", "child children", "wife wives",
    "employ employs employed employing", "close closes closed closing", "stop stops stopped stopping",
    "marry marries married marrying", "city cities", "box boxes", "number numbers", "die died death",
    "need needs needed", "show shows showed shown", "live lives lived living", "hope hopes hoped hoping",
    "agree agrees agreed agreeing",
]  # fmt: skip
OTHER = [
    ("news", "new"), ("evening", "even"), ("glass", "glas"), ("seed", "see"), ("string", "str"), ("bus", "bu"),
    ("united", "unit"), ("mill", "miller"), ("sing", "single"), ("need", "knee"),
    ("hoping", "hop"), ("cared", "car"), ("stared", "star"), ("rated", "rat"),
]  # fmt: skip


@pytest.mark.parametrize("family", SAME)
def test_each_form_leads_to_each_other(family: str) -> None:
    words = family.split()
    missing = [(word, other) for word in words for other in words if word != other and other not in other_forms(word)]
    assert missing == []


@pytest.mark.parametrize(("word", "other"), OTHER)
def test_words_that_only_look_alike_are_none(word: str, other: str) -> None:
    assert other not in other_forms(word)


def test_neither_the_word_itself_nor_what_says_nothing_is_among_them() -> None:
    for word in ("do", "was", "need", "having", "men", "as", "his", "us", "go"):
        assert word not in other_forms(word) and not STOP_WORDS & other_forms(word)


def test_a_thing_is_no_form_of_a_verb() -> None:
    assert other_forms("finding", "What is the") == {"findings"}
    assert "found" in other_forms("finding", "Who was") and "wrote" in other_forms("writing", "breathe")
