"""Answers beyond the engine's positions, step by step with outputs none to two steps late (``Rig``, conftest.py).

The engine has 512 positions. The fake worker says 1000, 1001, ... and checks in every step that what it is shown is
what its KV cache was computed for, and that it gets clean ids and the slots of exactly this step's gists.
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.store.library import namespace_of

ENGINE, WINDOW = 512, 384
MakeRig = Callable[..., Any]
lateness = pytest.mark.parametrize("late", [0, 1, 2])


def history(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3000, 49_000, length).tolist()


def said(count: int) -> list[int]:
    return [1000 + i % 1000 for i in range(count)]


def check_prompts(rig: Any, name: str, folds: int) -> None:
    """What the workers were shown each time the request came back."""
    seen, lengths = rig.worker.seen_prompts[name], rig.worker.prompt_lengths[name]
    assert len(seen) == 1 + folds
    for visible, prompt in zip(seen[1:], lengths[1:], strict=True):
        answer = visible[prompt:]
        assert len(visible) <= WINDOW
        assert len(answer) >= WINDOW // 4 - 32, "what is being said is there to go on from"
        first = rig.tokens[name].index(answer[0])
        assert answer == rig.tokens[name][first : first + len(answer)]


@lateness
@pytest.mark.parametrize("v2", [False, True])
@pytest.mark.parametrize("gists", [False, True])
def test_a_long_answer_about_a_history(make_rig: MakeRig, late: int, v2: bool, gists: bool) -> None:
    rig = make_rig(late=late, v2=v2, gists=gists)
    request = rig.add("long", history(5000), max_tokens=900)
    rig.run()
    assert rig.tokens["long"] == said(900) and rig.finished["long"] == [FinishReason.LENGTH]
    check_prompts(rig, "long", folds=len(rig.worker.prompt_lengths["long"]) - 1)
    assert len(rig.worker.prompt_lengths["long"]) >= 4
    assert rig.told_finished == ["long"] and request.num_preemptions == 0
    rig.assert_clean()


@lateness
def test_a_prompt_that_fits_is_stock_until_it_is_full(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    prompt = history(50)
    rig.add("short", prompt, max_tokens=1200)
    rig.run(until=lambda: len(rig.tokens["short"]) == ENGINE - 50 - 2)
    assert rig.worker.seen_prompts["short"] == [prompt] and not rig.trees() and not rig.scheduler.plans
    rig.run()
    assert rig.tokens["short"] == said(1200) and rig.finished["short"] == [FinishReason.LENGTH]
    check_prompts(rig, "short", folds=len(rig.worker.prompt_lengths["short"]) - 1)
    assert all(visible[:32] == prompt[:32] for visible in rig.worker.seen_prompts["short"]), "the head stays"
    rig.assert_clean()


@lateness
@pytest.mark.parametrize("length", [WINDOW + 1, ENGINE - 40, ENGINE - 1])
def test_a_prompt_beyond_the_window_that_fits_the_engine_is_shown_whole(
    make_rig: MakeRig, late: int, length: int
) -> None:
    """Whatever max_tokens says: a short answer never knows of it, and a long one is folded when the engine is full."""
    rig = make_rig(late=late)
    prompt = history(length)
    rig.add("short", prompt, max_tokens=4000)
    rig.add("long", prompt, max_tokens=600)
    rig.add("little", prompt, max_tokens=ENGINE - length + 3)
    rig.run(until=lambda: len(rig.tokens["short"]) == ENGINE - length)
    assert rig.worker.seen_prompts["short"] == [prompt]
    rig.scheduler.finish_requests("short", RequestStatus.FINISHED_ABORTED)
    rig.run()
    assert rig.tokens["long"] == said(600) and rig.finished["long"] == [FinishReason.LENGTH]
    assert rig.tokens["little"] == said(ENGINE - length + 3), "more than there was room for, less than in a window"
    assert rig.worker.seen_prompts["long"][0] == prompt and len(rig.worker.seen_prompts["long"]) > 1
    rig.assert_clean()


def test_what_was_said_is_history_then(make_rig: MakeRig) -> None:
    rig = make_rig()
    prompt = history(5000)
    rig.add("long", prompt, max_tokens=700)
    rig.run()
    (tree,) = rig.trees()
    with closing(LevelReader(tree / "LOD0.ctx")) as reader:
        stored = reader.rows(0, reader.count).tolist()
    assert len(stored) > 5400 and stored == (prompt + said(700))[: len(stored)]


@pytest.mark.parametrize("v2", [False, True])
def test_the_same_alone_and_among_others(make_rig: MakeRig, tmp_path: Path, v2: bool) -> None:
    alone = make_rig(late=1, v2=v2, store=str(tmp_path / "a"))
    among = make_rig(late=2, v2=v2, store=str(tmp_path / "b"))
    alone.add("it", history(5000), max_tokens=800)
    alone.run()
    for i in range(3):
        among.add(f"before{i}", history(3000 + i, seed=i + 1), max_tokens=300 + 70 * i)
    among.add("it", history(5000), max_tokens=800)
    for i in range(3):
        among.add(f"short{i}", history(40, seed=i), max_tokens=600)
    among.run()
    assert among.worker.seen_prompts["it"] == alone.worker.seen_prompts["it"]
    assert all(len(among.tokens[f"short{i}"]) == 600 for i in range(3))
    among.assert_clean()


def test_counting_goes_on(make_rig: MakeRig) -> None:
    rig = make_rig()
    request = rig.add("long", history(5000), max_tokens=900)
    request.sampling_params.min_tokens = 600
    rig.run(until=lambda: len(rig.worker.prompt_lengths["long"]) == 2)
    kept = len(rig.worker.seen_prompts["long"][1]) - rig.worker.prompt_lengths["long"][1]
    folded = len(rig.scheduler.growing["long"].tokens) - 5000
    assert request.sampling_params.min_tokens == 600 - folded and request.max_tokens == 900 - folded
    assert kept + folded <= len(rig.tokens["long"])
    rig.run()
    assert len(rig.tokens["long"]) == 900


@lateness
def test_a_stop_token_long_after_the_first_fold(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    request = rig.add("long", history(5000), max_tokens=900)
    request.sampling_params.stop_token_ids = [1650]
    rig.run()
    assert rig.tokens["long"] == said(651) and rig.finished["long"] == [FinishReason.STOP]
    rig.assert_clean()


def test_asked_not_to(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add("short", history(50), max_tokens=900, megacontext_fold=False)
    rig.run()
    assert len(rig.tokens["short"]) == ENGINE - 50 and rig.finished["short"] == [FinishReason.LENGTH]
    rig.assert_clean()


@lateness
@pytest.mark.parametrize("v2", [False, True])
def test_more_of_them_than_memory(make_rig: MakeRig, late: int, v2: bool) -> None:
    rig = make_rig(late=late, v2=v2, blocks=2 * ENGINE // 16 + 9, caching=False)
    requests = [
        rig.add(f"r{i}", history(60 if i % 2 else 3000, seed=i), max_tokens=620 + i)
        for i in range(6)  # more than max_num_seqs, too
    ]
    rig.run()
    assert any(request.num_preemptions for request in requests), "the blocks were to run out"
    for i in range(6):
        assert rig.tokens[f"r{i}"] == said(620 + i)
    rig.assert_clean()


@lateness
def test_aborted_while_it_is_folded(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    rig.add("other", history(60), max_tokens=30)
    rig.add("long", history(5000), max_tokens=900)
    rig.run(until=lambda: "long" in rig.scheduler.held and rig.scheduler.held["long"].folding)
    assert rig.scheduler.get_request_counts()[1] == 1 and rig.scheduler.has_requests()
    (finished,) = rig.scheduler.finish_requests("long", RequestStatus.FINISHED_ABORTED)
    assert finished.request_id == "long" and not rig.scheduler.held
    rig.assert_clean()
    assert len(rig.tokens["other"]) == 30 and len(rig.trees()) == 1, "the history it came with stays stored"


def test_what_cannot_be_folded_ends_where_it_is(make_rig: MakeRig) -> None:
    rig = make_rig()
    in_the_way = rig.scheduler.settings.store / "trees" / namespace_of("salt")
    in_the_way.write_text("no folder can be made here")
    rig.add("good", history(60), max_tokens=900)
    rig.add("bad", history(60, seed=1), max_tokens=900, salt="salt")
    rig.run()
    assert rig.tokens["bad"] == said(ENGINE - 60) and rig.finished["bad"] == [FinishReason.LENGTH]
    assert rig.tokens["good"] == said(900)
    assert sorted(rig.told_finished) == ["bad", "good"]
    rig.assert_clean()
