"""The focus follows a fact to the next one, in real text."""

import pytest

from megacontext_vllm.eval.methods import make
from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks import TASKS
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.focus import focus as module


def shown(tools: Tools, filler: Filler, chat: ChatFormat) -> float:
    """Share of the evidence that 1,024 entries of 65,536 tokens show, over 12 questions of two and three hops."""
    (method,) = make(["megacontext"], tools)
    recalls = [
        method.select(View(chat.prompt(sample), None), 1024).recall(sample.evidence)
        for seed in range(3)
        for sample in TASKS["variable_tracking"].samples(filler, chat, 65_536, seed)
    ]
    return sum(recalls) / len(recalls)


def test_the_second_look_finds_what_the_first_one_named(
    tools: Tools, filler: Filler, chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(tools, filler, chat) >= 0.95
    monkeypatch.setattr(module, "look_again", lambda tokens, query, utility, lens: utility)
    assert shown(tools, filler, chat) < 0.5
