"""Which rules may be asked: those by words are for English."""

import pytest

from megacontext_vllm.focus.english import is_in_another_script, is_other, may_be_english


@pytest.mark.parametrize("text", ["Who kept the mill?", "Please answer.", "What is “Größe”?", "THE END", "List all"])
def test_english(text: str) -> None:
    assert may_be_english(text)
    assert not is_other(text)


OTHERS = ["Wo liegt der Schlüssel?", "谁看守灯塔?", "Где ключ от архива?", "Ở đâu?", "这是 the 灯塔 和 渔民"]


@pytest.mark.parametrize("text", OTHERS)
def test_another_language(text: str) -> None:
    assert not may_be_english(text)
    assert is_other(text)


@pytest.mark.parametrize("text", ["", "harbour master elm quay", "17 — 42", "Antworte in einem Satz.", "{}"])
def test_what_cannot_be_told(text: str) -> None:
    assert not may_be_english(text)
    assert not is_other(text)


MIXED = [("탑의 지붕은 what", True), ("Café Zoë, a guide to Montréal", False), ("", False)]


@pytest.mark.parametrize(("text", "expected"), MIXED)
def test_another_script(text: str, expected: bool) -> None:
    assert is_in_another_script(text) is expected
