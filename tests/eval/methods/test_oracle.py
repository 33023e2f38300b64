"""The oracle: evidence first, then its surroundings, evenly; of too much evidence the latest."""

from collections.abc import Callable

import numpy as np
import pytest

from megacontext_vllm.eval.context import Gap, Raw
from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.oracle import Oracle
from megacontext_vllm.eval.prompt import Prompt
from megacontext_vllm.eval.sample import Span


@pytest.fixture
def show(tools: Tools, prompt_of: Callable[..., Prompt]) -> Callable[..., object]:
    def shown(length: int, budget: int, *evidence: Span) -> object:
        prompt = prompt_of(np.zeros(length, dtype=np.uint32))
        return Oracle(tools).select_told(View(prompt, None), budget, evidence)

    return shown


def test_widened_evenly(show: Callable, tools: Tools) -> None:
    assert len(tools.gap) == 4
    context = show(1000, 108, (500, 520))
    assert context.pieces == (Gap(0, 460), Raw(460, 560), Gap(560, 1000)) and context.cost == 108
    context = show(1000, 109, (500, 520))
    assert context.raw == [(459, 560)], "an odd token goes to the left"


def test_at_an_end_the_rest_goes_to_the_other_side(show: Callable) -> None:
    assert show(1000, 104, (0, 10)).raw == [(0, 100)]
    assert show(1000, 104, (990, 1000)).raw == [(900, 1000)]


def test_several_spans(show: Callable) -> None:
    context = show(1000, 132, (100, 110), (500, 520))
    # 132 = 3 gaps of 4 + 30 of evidence + 90 around it: 22 on each of four sides, 2 left
    assert context.raw == [(77, 133), (478, 542)] and context.cost == 132
    context = show(1000, 132, (500, 510), (512, 522))
    assert context.raw == [(438, 562)] or context.cost == 132


def test_too_much_evidence(show: Callable) -> None:
    context = show(1000, 112, (100, 160), (300, 330), (500, 550))
    assert context.raw[1:] == [(300, 330), (500, 550)]
    # 112 = 4 gaps of 4 + 50 + 30 + 16
    assert context.raw[0] == (144, 160) and context.cost == 112
    context = show(1000, 50, (100, 160))
    assert context.raw == [(118, 160)] and context.cost == 50


def test_no_room_at_all(show: Callable) -> None:
    assert show(1000, 8, (100, 160)).raw == []
    assert show(10, 10, (1, 3)).pieces == (Raw(0, 10),)
