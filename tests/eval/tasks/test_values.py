"""Values are new to the text, and to each other."""

import random
from typing import Any

import numpy as np
import pytest

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.values import MATERIALS, PLACES, Values


def values(chat: ChatFormat, text: str, seed: int = 0) -> Values:
    filler = Filler(np.zeros(32, dtype=np.uint32), np.array([0]), np.array([0]), text.casefold())
    return Values(random.Random(seed), filler, chat)


def test_nothing_is_drawn_that_the_text_mentions(chat: ChatFormat) -> None:
    text = " ".join(str(number) for number in range(1000, 10_000) if number % 100)
    drawn = values(chat, text).numbers(20, digits=4)
    assert len(set(drawn)) == 20 and all(int(number) % 100 == 0 for number in drawn)


def test_a_text_that_mentions_everything_is_refused(chat: ChatFormat) -> None:
    with pytest.raises(EvaluationError, match="less text"):
        values(chat, " ".join(map(str, range(1000, 10_000)))).numbers(1, digits=4)
    with pytest.raises(EvaluationError, match="less text"):
        values(chat, "Red roses. " * 3).phrases(1, ["red"], ["rose"])


def test_phrases_are_of_one_size_and_share_no_word(chat: ChatFormat) -> None:
    for seed in range(20):
        drawn = values(chat, "", seed).phrases(4, MATERIALS, PLACES)
        assert len({word for phrase in drawn for word in phrase.split()}) == 8
        assert len({len(chat.encode(f" {phrase}")) for phrase in drawn}) == 1


def test_nothing_is_drawn_twice(chat: ChatFormat) -> None:
    some = values(chat, "")
    drawn: list[Any] = [some.numbers(50, digits=2), some.numbers(20, digits=2), some.times(50), some.times(50)]
    flat = [value for part in drawn for value in part]
    assert len(set(flat)) == len(flat) == 170
