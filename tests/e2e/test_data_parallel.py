"""Data parallelism: two engines and two front ends of one server share a store, and neither disturbs the other."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import GAP, GIST_SEED, two_devices
from reference import Reference
from servers import Server, serve
from transformers import AutoTokenizer

STEPS = 12
pytestmark = two_devices


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = [
        *("--data-parallel-size", "2", "--max-model-len", "1100", "--block-size", "32"),
        *("--enable-prompt-tokens-details", "--additional-config.megacontext.window", "512"),
        *("--additional-config.megacontext.gist_net", f"random:{GIST_SEED}"),
        # Small steps, so that both engines are at it for long.
        *("--additional-config.megacontext.gist_tokens_per_step", "1024"),
    ]
    folder = tmp_path_factory.mktemp("data-parallel")
    with serve(tiny, folder, *options, environment={"VLLM_CPU_OMP_THREADS_BIND": "0|1"}) as server:
        yield server


def ask(server: Server, tokens: list[int], engine: int) -> dict[str, Any]:
    """The answer of one of the two engines, asked through whichever front end takes the connection."""
    body = {
        "model": "m",
        "prompt": tokens,
        "max_tokens": STEPS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        "vllm_xargs": {"megacontext_trace": 1},
    }
    answer = httpx.post(
        f"{server.address}/v1/completions", json=body, headers={"X-data-parallel-rank": str(engine)}, timeout=300
    )
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def trace(server: Server, answer: dict[str, Any]) -> dict[str, Any]:
    found = [httpx.get(f"{server.address}/v1/megacontext/focus/{answer['id']}") for _ in range(4)]
    assert {one.status_code for one in found} == {200}, "every front end knows it"
    return dict(found[0].json())


def test_both_engines_answer_over_one_history_at_once(server: Server, tiny: Path, text: str) -> None:
    tokenizer, reference = AutoTokenizer.from_pretrained(tiny), Reference(tiny, GIST_SEED)
    gap = tokenizer.encode(GAP, add_special_tokens=False)
    tokens = list(tokenizer.encode(text[:200_000])[:40_000])
    for history in (tokens[:35_000], tokens[:36_000], tokens[20_000:40_000]):  # new, grown, and new again
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda engine: ask(server, history, engine), (0, 1, 0, 1)))  # noqa: B023
        for answer in answers:
            entries = trace(server, answer)["entries"]
            assert any(entry["kind"] == "gist" for entry in entries)
            embeddings, ids = reference.working_context(history, entries, gap)
            assert answer["choices"][0]["token_ids"] == reference.greedy(embeddings, ids, STEPS)


def test_what_one_engine_took_in_the_other_knows(server: Server, tiny: Path, text: str) -> None:
    tokens = list(AutoTokenizer.from_pretrained(tiny).encode(text[400_000:500_000])[:15_000])
    assert trace(server, ask(server, tokens[:12_000], 0))["reused_tokens"] == 0
    assert trace(server, ask(server, tokens[:13_000], 1))["reused_tokens"] == 12_000
    assert trace(server, ask(server, tokens, 0))["reused_tokens"] == 13_000


def test_no_engine_complained(server: Server) -> None:
    """Runs last in this file: no gist was refused, no tree found locked, no request fell back to hidden spans."""
    lines = server.log.read_text(errors="replace").splitlines()
    assert any("EngineCore_DP1" in line for line in lines)
    assert any("ApiServer_1" in line for line in lines)
    assert not [line for line in lines if "ERROR" in line and "megacontext" in line.lower()]
