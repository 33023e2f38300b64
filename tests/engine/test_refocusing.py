"""Renewing the focus while an answer is said, step by step (``Rig``, conftest.py).

The fake model says 1000, 1001, ...; the history holds a passage of the tokens that it says from 1040 on, which nobody
asked for: once the answer speaks of that, it is to be shown.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

MakeRig = Callable[..., Any]
lateness = pytest.mark.parametrize("late", [0, 1, 2])
EVERY, PASSAGE, PLACE = 64, list(range(1040, 1060)), 4321


# The passage is among the last blocks, which are below no node: where gists are shown, a block of them costs least.
AT_ONCE = {"refocus_tokens": EVERY, "refocus_share": 1.0}
"""As soon as something is found, whatever its prefill takes."""


def history(passage: bool = True) -> list[int]:
    # Without the passage, out of few tokens: what is rare in a history, and said in an answer, leads somewhere.
    tokens = np.random.default_rng(0).integers(3000, 49_000 if passage else 3100, 5000).tolist()
    if passage:
        tokens[PLACE : PLACE + len(PASSAGE)] = PASSAGE
    return tokens


def said(count: int) -> list[int]:
    return [1000 + i % 1000 for i in range(count)]


def prompts(rig: Any) -> list[list[int]]:
    """The different prompts that the request had, one after the other."""
    different: list[list[int]] = []
    for visible in rig.worker.seen_prompts["it"]:
        prompt = visible[: visible.index(1000)] if 1000 in visible else visible
        if not different or different[-1] != prompt:
            different.append(prompt)
    return different


def shows_passage(prompt: list[int]) -> bool:
    return any(prompt[i : i + len(PASSAGE)] == PASSAGE for i in range(len(prompt)))


@lateness
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("gists", [False, True])
def test_what_the_answer_speaks_of_is_shown(make_rig: MakeRig, late: int, v2: bool, gists: bool) -> None:
    rig = make_rig(late=late, v2=v2, gists=gists, **AT_ONCE)
    request = rig.add("it", history(), max_tokens=120)
    rig.run()
    assert rig.tokens["it"] == said(120) and rig.finished["it"] == [FinishReason.LENGTH]
    before, after = prompts(rig)
    assert not shows_passage(before)
    # Gists of everything leave so small a window to the blocks that stand closest together.
    assert gists or shows_passage(after)
    assert after + said(EVERY + 32) in rig.worker.seen_prompts["it"], "32 tokens after the look, none lost"
    assert request.num_preemptions == 0
    rig.assert_clean()


@lateness
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_preempted_just_when_it_is_decided(make_rig: MakeRig, late: int, v2: bool, before: int) -> None:
    """The new focus comes at the same token as ever, and what was in flight, which saw the old one, is not said."""
    rig = make_rig(late=late, v2=v2, gists=False, **AT_ONCE)
    rig.add("it", history(), max_tokens=120)
    rig.run(until=lambda: len(rig.tokens["it"]) == EVERY + 32 - before)
    request = rig.scheduler.requests["it"]
    if request in rig.scheduler.running:  # as vLLM does where the blocks do not suffice
        rig.scheduler.running.remove(request)
        rig.scheduler._preempt_request(request, time.monotonic())
    rig.run()
    assert rig.tokens["it"] == said(120) and rig.finished["it"] == [FinishReason.LENGTH]
    assert shows_passage(prompts(rig)[-1])
    assert prompts(rig)[-1] + said(EVERY + 32) in rig.worker.seen_prompts["it"], "32 tokens after the look, none lost"
    rig.assert_clean()


@lateness
def test_nothing_happens_where_nothing_new_is_found(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late, gists=False, **AT_ONCE)
    rig.add("it", history(passage=False), max_tokens=120)
    rig.run(until=lambda: "it" in rig.scheduler.growing and rig.scheduler.growing["it"].look is not None)
    rig.settle()  # the plan is there in time
    rig.run()
    assert rig.tokens["it"] == said(120) and len(rig.worker.seen_prompts["it"]) == 1 and not rig.worker.resumed
    rig.assert_clean()


@lateness
@pytest.mark.parametrize("in_time", [True, False])
def test_every_32_tokens(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, late: int, in_time: bool) -> None:
    """The next look begins where the last one was decided upon, whether its plan was there by then or waited for."""
    rig = make_rig(late=late, gists=False, refocus_tokens=32)
    looks: list[int] = []
    plan, gate = rig.scheduler._plan, threading.Event()

    def noted(plan_request: Any) -> Any:
        looks.append(plan_request.answer)
        if not in_time and plan_request.answer:
            gate.clear()
            rig.scheduler._threads.submit(gate.wait)
        return plan(plan_request)

    monkeypatch.setattr(rig.scheduler, "_plan", noted)
    rig.add("it", history(passage=False), max_tokens=135)
    for _ in range(1000):
        rig.step()
        if in_time:
            rig.settle()
        elif "it" in rig.scheduler.held:
            gate.set()
        if "it" in rig.finished:
            break
    gate.set()
    assert rig.tokens["it"] == said(135) and looks == [0, 32, 64, 96, 128]
    rig.assert_clean()


@lateness
def test_a_change_waits_until_it_pays(make_rig: MakeRig, late: int) -> None:
    """A look after 64 tokens finds what the answer speaks of, and one after 192; only then may a prefill take 5 %."""
    tokens = history()
    later = said(192)[160:180]
    tokens[3009 : 3009 + len(later)] = later
    rig = make_rig(late=late, gists=False, window=192, refocus_tokens=EVERY)
    rig.add("it", tokens, max_tokens=250)
    rig.run()
    assert rig.tokens["it"] == said(250)
    _, after = prompts(rig)
    assert any(after[i : i + len(later)] == later for i in range(len(after)))
    assert after[-64:] == said(192 + 32)[-64:], "not at the look after 64"
    rig.assert_clean()


def test_off_by_default(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add("it", history(), max_tokens=120)
    rig.run()
    assert len(rig.worker.seen_prompts["it"]) == 1
    rig.assert_clean()


@pytest.mark.parametrize("passage", [True, False])
@pytest.mark.parametrize("v2", [False, True])
def test_a_plan_that_is_late_is_waited_for(make_rig: MakeRig, v2: bool, passage: bool) -> None:
    rig = make_rig(v2=v2, gists=False, **AT_ONCE)
    gate = threading.Event()
    rig.add("it", history(passage), max_tokens=120)
    rig.run(until=lambda: len(rig.tokens["it"]) > EVERY - 20)
    rig.scheduler._threads.submit(gate.wait)
    rig.run(until=lambda: "it" in rig.scheduler.held)
    for _ in range(5):
        rig.step()
    # One more may have been on its way, and is said again.
    assert rig.tokens["it"] == said(EVERY + 32), "it waits at the position where it decides"
    gate.set()
    rig.run()
    assert rig.tokens["it"] == said(120) and rig.finished["it"] == [FinishReason.LENGTH]
    assert rig.worker.seen_prompts["it"][1][-EVERY - 32 :] == said(EVERY + 32)
    assert len(prompts(rig)) == 1 + passage and shows_passage(prompts(rig)[-1]) == passage
    rig.assert_clean()


def test_a_look_and_a_fold(make_rig: MakeRig) -> None:
    rig = make_rig(**AT_ONCE)
    rig.add("it", history(), max_tokens=900)
    rig.add("other", history(passage=False), max_tokens=700)
    rig.add("short", history()[:60], max_tokens=600)
    rig.run()
    assert rig.tokens["it"] == said(900) and rig.tokens["other"] == said(700) and rig.tokens["short"] == said(600)
    rig.assert_clean()


@lateness
def test_aborted_with_a_look_under_way(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late, **AT_ONCE)
    gate = threading.Event()
    rig.add("it", history(), max_tokens=120)
    rig.run(until=lambda: len(rig.tokens["it"]) > EVERY - 5)
    rig.scheduler._threads.submit(gate.wait)
    rig.run(until=lambda: rig.scheduler.growing["it"].look is not None)
    rig.scheduler.finish_requests("it", RequestStatus.FINISHED_ABORTED)
    gate.set()
    rig.assert_clean()


def test_a_look_that_fails_changes_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(**AT_ONCE)
    rig.add("it", history(), max_tokens=120)
    rig.run(until=lambda: len(rig.tokens["it"]) > 5)

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(rig.scheduler.library, "acquire", full)
    rig.run()
    assert rig.tokens["it"] == said(120) and rig.finished["it"] == [FinishReason.LENGTH]
    rig.assert_clean()
