"""Which tokens an answer is planned anew with, and which it goes on with, over folds and looks in any order."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from vllm import SamplingParams
from vllm.v1.request import Request

from megacontext_vllm.engine.folding import FoldingAnswers
from megacontext_vllm.engine.held import Growing
from megacontext_vllm.engine.plan import Plan

MOST = 10**6
SHOWN = [1, 2, 3]


class Answers(FoldingAnswers):
    """The part of the scheduler that takes answers up again, without vLLM's queues around it."""

    def __init__(self) -> None:
        self.growing, self.plans = {}, {}
        self.waiting: Any = SimpleNamespace(prepend_request=lambda request: None)

    def _release(self, tree: Any, discard: bool = False) -> None: ...
    def _look_later(self, growing: Growing, said: int) -> None: ...


@pytest.mark.parametrize("seed", range(60))
def test_nothing_is_lost_or_said_twice(seed: int) -> None:
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(9999) for _ in range(count)]

    prompt, said, look = ids(rng.choice([1, 5, 40, 300])), [], None
    request = Request("r", list(prompt), SamplingParams(max_tokens=MOST), None)
    growing = Growing(np.array(prompt, dtype=np.uint32), len(prompt), 512, "default", trace=False, folds=True)
    answers = Answers()
    answers.growing["r"] = growing
    for _ in range(rng.randrange(20, 150)):
        new = ids(rng.choice([1, 1, 1, 3]))
        said += new
        request.append_output_token_ids(new)
        assert growing.said(request) == len(said)
        happens, chosen = rng.random(), None
        if happens < 0.05:  # the positions are used up, which calls any look off
            look, chosen = None, answers._plan_request(request, growing, len(said))
        elif look is None:
            folded = len(growing.tokens) - len(prompt)  # no look goes back behind it
            look = answers._plan_request(request, growing, rng.randrange(max(folded, 1), len(said) + 1))
        elif happens < 0.3:  # decided upon while the answer has gone on
            look, chosen = None, look
        if chosen is None:
            continue
        tokens = chosen.tokens()
        assert tokens.tolist() == prompt + said[: chosen.answer]
        kept = len(tokens) - rng.choice([0, chosen.answer, rng.randrange(chosen.answer + 1)])
        nowhere = np.zeros(0, dtype=np.int64)
        going_on = tokens[kept:].tolist()
        plan = Plan(None, tokens, len(tokens), False, 0, None, SHOWN, SHOWN, nowhere, [], going_on)  # type: ignore[arg-type]
        answers._go_on(request, plan)
        assert growing.tokens.tolist() + list(request._output_token_ids) == prompt + said
        assert list(request.all_token_ids) == SHOWN + request._output_token_ids
        assert request.max_tokens - request.num_output_tokens == MOST - len(said)
