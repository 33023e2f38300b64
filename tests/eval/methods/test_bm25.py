"""BM25 finds what is literal, and takes anything for a history."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from megacontext_vllm.eval.methods import make
from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.prompt import ChatFormat, Prompt

FACT = " The secret number of Mira Oldenburg is 48213."


@pytest.mark.parametrize("name", ["bm25_32", "bm25_256"])
@pytest.mark.parametrize("place", [0, 5_120, 19_968])
def test_finds_a_planted_sentence(
    tools: Tools, chat: ChatFormat, ids: np.ndarray, prompt_of: Callable[..., Prompt], name: str, place: int
) -> None:
    fact = chat.encode(FACT)
    history = np.concatenate([ids[:place], fact, ids[place:20_000]])
    (method,) = make([name], tools)
    context = method.select(View(prompt_of(history), method.index(history)), 512)
    assert context.recall([(place, place + len(fact))]) == 1
    assert context.cost == 512


def test_what_the_question_says_nothing_about_is_recent(
    tools: Tools, ids: np.ndarray, prompt_of: Callable[..., Prompt]
) -> None:
    history = ids[:5_003]
    (method,) = make(["bm25_32"], tools)
    index = method.index(history)
    for question in ("", "zzqx?", "What is it, and who was there?"):
        prompt = replace(prompt_of(history), question=question)
        context = method.select(View(prompt, index), 256)
        # The unfinished chunk of 11, seven whole ones, one gap, and the first 17 of the next, behind a gap of its own.
        assert context.raw == [(4736, 4749), (4768, 5003)], question


@pytest.mark.parametrize("name", ["bm25_32", "bm25_256"])
def test_a_history_without_words(tools: Tools, chat: ChatFormat, prompt_of: Callable[..., Prompt], name: str) -> None:
    history = chat.encode("\n . " * 1000)
    (method,) = make([name], tools)
    context = method.select(View(prompt_of(history), method.index(history)), 512)
    assert context.raw[-1][1] == len(history)


def test_stop_words_do_not_count(tools: Tools, ids: np.ndarray, prompt_of: Callable[..., Prompt]) -> None:
    (method,) = make(["bm25_256"], tools)
    index = method.index(ids[:20_000])
    bare = prompt_of(ids[:20_000], question="treasury surplus")
    wordy = prompt_of(ids[:20_000], question="What did they do with the TREASURY, and who had a surplus?")
    assert np.array_equal(method.score(View(bare, index)), method.score(View(wordy, index)))  # type: ignore[attr-defined]
