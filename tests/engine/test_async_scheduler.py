"""MegaContextAsyncScheduler, driven step by step with outputs one or two steps late (see ``Rig`` in conftest.py).

The fake worker checks in every step that no content id reaches it, that the spans' slots are exactly those of the
step's gist positions, that each names the row of its own node, and that jobs stay within their bound.
"""

import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import FinishReason
from vllm.v1.request import RequestStatus

from megacontext_vllm.engine.content_ids import is_content_id
from megacontext_vllm.tree.store.library import namespace_of
from megacontext_vllm.tree.tree import MegaContextTree

LENGTH, WINDOW, ABORTED = 5000, 384, RequestStatus.FINISHED_ABORTED
MakeRig = Callable[..., Any]


def history(length: int = LENGTH, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 49_000, length).tolist()


def planned(rig: Any) -> None:
    for held in rig.scheduler.held.values():
        held.future.result(timeout=20)


def lateness(function: Any) -> Any:
    return pytest.mark.parametrize("late", [0, 1, 2])(function)


@lateness
@pytest.mark.parametrize(("v2", "chunk"), [(False, 128), (True, 128), (False, 17)])
def test_a_long_request_from_arrival_to_its_last_token(make_rig: MakeRig, late: int, v2: bool, chunk: int) -> None:
    rig = make_rig(late=late, v2=v2)
    scheduler = rig.scheduler
    scheduler.max_num_scheduled_tokens = chunk  # small ones begin and end at gists as well
    prompt = history()
    request = rig.add("long", prompt, max_tokens=7)
    assert scheduler.get_request_counts() == (0, 1) and scheduler.get_num_unfinished_requests() == 1
    assert scheduler.has_requests() and "long" not in scheduler.requests

    rig.run(until=lambda: "long" in scheduler.requests)
    plan = scheduler.plans["long"]
    assert rig.worker.nodes_made == LENGTH // 32 + LENGTH // 1024, "admitted when all its gists are committed"
    assert plan.gist_nodes and len(plan.prompt) <= WINDOW
    assert request.num_prompt_tokens == len(request.prompt_token_ids) == request.num_tokens == len(plan.prompt)
    assert [i for i, t in enumerate(request.all_token_ids) if is_content_id(t)] == plan.gist_positions.tolist()
    assert not any(map(is_content_id, request.prompt_token_ids))

    rig.run(until=lambda: "long" in rig.finished)
    assert len(rig.tokens["long"]) == 7 and rig.finished["long"] == [FinishReason.LENGTH]
    assert rig.worker.spans_shown["long"] == len(plan.gist_nodes)
    # The worker sees the span's first token in the place of its gist.
    starts = [entry.start for entry in plan.context.entries if entry.kind.name == "GIST"]
    seen = rig.worker.seen_prompts["long"][0]
    assert [seen[p] for p in plan.gist_positions] == [prompt[start] for start in starts]
    assert len(seen) == len(plan.prompt)
    rig.assert_clean()
    assert len(rig.trees()) == 1


@lateness
def test_ingest_takes_bounded_steps_while_others_run(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late, gist_tokens_per_step=512)
    rig.add("short", history(40), max_tokens=60)
    rig.add("long", history())
    rig.run(until=lambda: "long" in rig.scheduler.requests)
    assert len(rig.tokens["short"]) > 5, "an ingest holds nobody up"
    rig.run()
    assert len(rig.tokens["short"]) == 60 and len(rig.tokens["long"]) == 4
    rig.assert_clean()


@lateness
def test_a_paused_engine_makes_no_gists(make_rig: MakeRig, late: int) -> None:
    """Asleep, its workers have no weights to make them with."""
    rig = make_rig(late=late, gist_tokens_per_step=512)
    rig.add("long", history())
    rig.add("gone", history(5000, seed=9))
    rig.run(until=lambda: rig.worker.nodes_made > 32)
    rig.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    while rig.under_way:
        rig.deliver()
    rig.scheduler.finish_requests(["gone"], ABORTED)  # to tell the workers of it, vLLM makes a step
    rig.settle()
    made = rig.worker.nodes_made
    for _ in range(3):
        assert not getattr(rig.step(), "megacontext", None)
    assert rig.worker.nodes_made == made and "long" in rig.scheduler.held
    rig.scheduler.set_pause_state(PauseState.UNPAUSED)
    rig.run()
    assert len(rig.tokens["long"]) == 4 and not rig.tokens["gone"]
    rig.assert_clean()


def test_a_request_that_fits_is_stock(make_rig: MakeRig) -> None:
    rig, prompt = make_rig(), history(300)
    request = rig.add("short", prompt)
    assert "short" in rig.scheduler.requests and request.prompt_token_ids == prompt
    output = rig.step()
    assert not hasattr(output, "megacontext")
    rig.run()
    assert rig.worker.seen_prompts["short"] == [prompt] and len(rig.tokens["short"]) == 4
    assert rig.trees() == []
    rig.assert_clean()


def test_without_gists_spans_are_hidden(make_rig: MakeRig) -> None:
    rig = make_rig(gists=False)
    rig.add("long", history())
    rig.run()
    assert len(rig.tokens["long"]) == 4 and rig.worker.nodes_made == 0 and not rig.worker.spans_shown
    rig.assert_clean()


@lateness
def test_a_second_turn_continues_the_tree_and_the_prefix_cache(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    rig.add("one", history())
    rig.run()
    made = rig.worker.nodes_made
    rig.add("again", history())
    assert rig.scheduler.held["again"].future.result().reused == LENGTH
    rig.run()
    assert rig.worker.nodes_made == made, "no gist is made twice"
    # The same Working Context: all but the last block comes from the cache, so few gists are shown again.
    assert rig.worker.spans_shown["again"] < rig.worker.spans_shown["one"] / 4
    rig.add("longer", history() + history(1500, seed=1))
    rig.run()
    # The raw prompts have far more in common than the Working Contexts; the worker checks what the cache gives.
    rig.add("fork", history()[:2000] + history(3000, seed=7))
    rig.run()
    assert all(len(rig.tokens[name]) == 4 for name in ("one", "again", "longer", "fork"))
    assert len(rig.trees()) == 2
    rig.assert_clean()


@lateness
def test_several_histories_at_once(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    for i in range(6):  # more than max_num_seqs
        rig.add(f"r{i}", history(4000 + 300 * i, seed=i % 4), max_tokens=3 + i, salt="a" if i % 2 else None)
    rig.run()
    assert {name: len(tokens) for name, tokens in rig.tokens.items()} == {f"r{i}": 3 + i for i in range(6)}
    rig.assert_clean()


@lateness
@pytest.mark.parametrize("v2", [False, True])
def test_preempted_and_resumed(make_rig: MakeRig, late: int, v2: bool) -> None:
    # Two Working Contexts fit these blocks, but not their answers.
    rig = make_rig(late=late, v2=v2, blocks=2 * WINDOW // 16 + 7, caching=False)
    rig.add("a", history(seed=1), max_tokens=110)
    rig.add("b", history(seed=2), max_tokens=110)
    planned(rig)
    rig.run(until=lambda: len(rig.scheduler.plans) == 2)
    shown = {name: len(plan.gist_nodes) for name, plan in rig.scheduler.plans.items()}
    rig.run()
    assert rig.worker.resumed, "the blocks were to run out"
    for name in set(rig.worker.resumed):
        # Recomputed from the start, with the answer so far behind the prompt; the worker got clean ids again.
        first, again = rig.worker.seen_prompts[name][:2]
        assert len(again) > len(first) and again[: len(first)] == first
        assert rig.worker.spans_shown[name] > shown[name]
    assert len(rig.tokens["a"]) == len(rig.tokens["b"]) == 110
    rig.assert_clean()


# ---- aborts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("running", [False, True])
def test_aborted_while_planning(make_rig: MakeRig, running: bool) -> None:
    rig = make_rig()
    scheduler, gate = rig.scheduler, threading.Event()
    if running:  # the plan has begun and cannot be called off: it waits for the library
        scheduler.library._lock.acquire()
    else:
        scheduler._threads.submit(gate.wait)
    request = rig.add("long", history())
    while running and not scheduler.held["long"].future.running():
        pass
    rig.step()
    assert scheduler.finish_requests("long", ABORTED) == [request] and request.is_finished()
    assert scheduler.finish_requests("long", ABORTED) == [] and scheduler.get_request_counts() == (0, 0)
    scheduler.library._lock.release() if running else gate.set()
    scheduler._threads.submit(lambda: None).result(timeout=20)
    rig.assert_clean()
    assert rig.trees() == [] and not rig.tokens["long"]


def test_aborted_when_its_plan_has_just_come(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add("long", history())
    planned(rig)
    rig.scheduler.finish_requests(["long", "nobody"], ABORTED)
    rig.assert_clean()
    assert rig.trees() == []


@lateness
def test_aborted_while_ingesting(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    rig.add("long", history())
    rig.run(until=lambda: rig.worker.nodes_made > 32)
    assert "long" in rig.scheduler.held and len(rig.trees()) == 1
    rig.scheduler.finish_requests(["long"], ABORTED)
    rig.settle()
    assert rig.trees() == []
    rig.step()
    rig.add("long", history())  # jobs that were under way do not disturb the next one
    rig.run()
    assert len(rig.tokens["long"]) == 4
    rig.assert_clean()


def test_an_abort_leaves_a_tree_that_another_request_uses(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add("one", history())
    rig.add("two", history())
    planned(rig)
    rig.run(until=lambda: rig.worker.nodes_made > 32)
    rig.scheduler.finish_requests("one", ABORTED)
    assert len(rig.trees()) == 1
    rig.run()
    assert len(rig.tokens["two"]) == 4 and not rig.tokens["one"]
    rig.assert_clean()


@lateness
@pytest.mark.parametrize("after", [0, 3])
def test_aborted_while_running(make_rig: MakeRig, late: int, after: int) -> None:
    rig = make_rig(late=late)
    rig.add("long", history(), max_tokens=50)
    rig.add("other", history(seed=3), max_tokens=9)
    rig.run(until=lambda: "long" in rig.scheduler.requests and len(rig.tokens["long"]) >= after)
    rig.scheduler.finish_requests("long", ABORTED)
    rig.run()
    assert len(rig.tokens["other"]) == 9 and after <= len(rig.tokens["long"]) < 50
    rig.assert_clean()
    assert len(rig.trees()) == 2, "an admitted history stays stored"


def test_all_requests_aborted_at_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add("short", history(50), max_tokens=400)
    rig.add("admitted", history(seed=1), max_tokens=50)
    planned(rig)
    rig.run(until=lambda: len(rig.tokens["admitted"]) > 0)
    rig.add("held", history(seed=2))
    finished = rig.scheduler.finish_requests(None, ABORTED)
    assert {request.request_id for request in finished} == {"short", "admitted", "held"}
    rig.scheduler._threads.submit(lambda: None).result(timeout=20)
    rig.assert_clean()


# ---- faults ---------------------------------------------------------------------------------------------------------


@lateness
def test_a_planning_error_ends_one_request(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    in_the_way = rig.scheduler.settings.store / "trees" / namespace_of("salt")
    in_the_way.write_text("no folder can be made here")
    rig.add("short", history(50), max_tokens=40)
    rig.add("good", history())
    rig.add("bad", history(), salt="salt")
    rig.add("never admitted", history(), salt="salt")
    rig.run()
    assert rig.finished["bad"] == rig.finished["never admitted"] == [FinishReason.ERROR] and not rig.tokens["bad"]
    assert len(rig.tokens["short"]) == 40 and len(rig.tokens["good"]) == 4
    rig.assert_clean()
    assert sorted(rig.told_finished) == ["bad", "good", "never admitted", "short"]
    in_the_way.unlink()
    rig.add("bad", history(), salt="salt")  # the id is free again
    rig.run()
    assert len(rig.tokens["bad"]) == 4


@lateness
def test_gists_that_cannot_be_made_are_done_without(make_rig: MakeRig, late: int) -> None:
    rig = make_rig(late=late)
    rig.worker.broken = True
    rig.add("long", history())
    rig.run()
    assert len(rig.tokens["long"]) == 4 and not rig.worker.spans_shown
    rig.assert_clean()


@pytest.mark.parametrize("level", [1, 2])
def test_damaged_gists_of_a_stored_tree_are_made_again(make_rig: MakeRig, level: int) -> None:
    rig = make_rig()
    rig.add("one", history())
    rig.run()
    (tree,) = rig.trees()
    (tree / f"LOD{level}.ctx").write_bytes((tree / f"LOD{level}.ctx").read_bytes()[:70])
    made = rig.worker.nodes_made
    rig.add("two", history())
    rig.run()
    again = len(history()) // 32**level  # of this level only: what stands above was made from the same
    assert len(rig.tokens["two"]) == 4 and rig.worker.nodes_made == made + again
    rig.assert_clean()


def test_damaged_gists_that_another_process_must_repair_are_done_without(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.add("one", history())
    rig.run()
    (folder,) = rig.trees()
    (folder / "LOD1.ctx").write_bytes((folder / "LOD1.ctx").read_bytes()[:70])
    model = rig.scheduler.planner.model_fingerprint
    shown = dict(rig.worker.spans_shown)
    with closing(MegaContextTree.open(folder, model_fingerprint=model, writable=True)):
        rig.add("two", history())
        rig.run()
    assert len(rig.tokens["two"]) == 4 and rig.worker.spans_shown == shown
    rig.assert_clean()
