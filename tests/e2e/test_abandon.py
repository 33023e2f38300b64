"""A client that goes away in the middle of an ingest leaves nothing behind."""

import time
from collections.abc import Callable
from pathlib import Path

from engines import Engine, greedy

from megacontext_vllm.tree.files.level_reader import read_count


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def gists_made(tree: Path) -> int:
    return read_count(tree / "LOD1.ctx")


def test_abort_while_gists_are_made(engine: Engine, tokens: list[int]) -> None:
    before = set(engine.trees())
    history = tokens[130_000:230_000]
    engine.llm.llm_engine.add_request("abandoned", {"prompt_token_ids": history}, greedy(4))
    wait_for(lambda: len(engine.trees()) > len(before))
    (tree,) = set(engine.trees()) - before
    wait_for(lambda: gists_made(tree) > 0)
    assert gists_made(tree) < len(history) // 32, "the ingest was over before it could be abandoned"
    engine.llm.llm_engine.abort_request(["abandoned"])
    wait_for(lambda: set(engine.trees()) == before)

    (output,) = engine.ask([tokens[:100]], greedy(4))
    assert len(output.outputs[0].token_ids) == 4
    assert engine.metric("vllm:kv_cache_usage_perc") == 0
    assert engine.metric("vllm:num_requests_waiting") == engine.metric("vllm:num_requests_running") == 0


def test_abort_before_the_plan_is_there(engine: Engine, tokens: list[int]) -> None:
    before = set(engine.trees())
    for i in range(5):
        engine.llm.llm_engine.add_request(f"gone-{i}", {"prompt_token_ids": tokens[i : 120_000 + i]}, greedy(4))
    engine.llm.llm_engine.abort_request([f"gone-{i}" for i in range(5)])
    (output,) = engine.ask([tokens[:100]], greedy(4))
    assert len(output.outputs[0].token_ids) == 4
    wait_for(lambda: set(engine.trees()) == before)


def test_ingest_goes_on_where_others_stopped(engine: Engine, tokens: list[int]) -> None:
    """A short request is served while a long history is ingested, and the long one is then answered too."""
    history = tokens[125_000:245_000]
    before = set(engine.trees())
    engine.llm.llm_engine.add_request("long", {"prompt_token_ids": history}, greedy(2))
    engine.llm.llm_engine.add_request("short", {"prompt_token_ids": tokens[:60]}, greedy(8))
    order = []
    while engine.llm.llm_engine.has_unfinished_requests():
        order += [output.request_id for output in engine.llm.llm_engine.step() if output.finished]
    assert order == ["short", "long"]
    (tree,) = set(engine.trees()) - before
    assert gists_made(tree) == len(history) // 32
    assert read_count(tree / "LOD2.ctx") == len(history) // 1024
    assert read_count(tree / "LOD3.ctx") == len(history) // 32768
