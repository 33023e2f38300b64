"""With gists, the engine says token for token what transformers says on the same embeddings.

The nets are untrained, so the gists are noise to the model; that every path shows it the same noise is the point.
"""

from collections.abc import Callable
from typing import Any

import pytest
from engines import GIST_SEED, Engine, greedy
from reference import Reference

STEPS = 24


@pytest.fixture(scope="module")
def tight(start_engine: Callable[..., Engine]) -> Engine:
    """Chunks of 256 tokens and a KV cache of 35 usable blocks, so that two requests cannot grow together."""
    return start_engine(
        {"gist_net": f"random:{GIST_SEED}", "window": 512},
        max_num_batched_tokens=256,
        max_num_seqs=8,
        num_gpu_blocks_override=36,
    )


@pytest.fixture(scope="module")
def documents(tokens: list[int]) -> list[list[int]]:
    """Eight histories without a common prefix, 2,000 to 40,000 tokens, one of them deep enough for LOD3."""
    lengths = [2500, 5001, 3333, 40_000, 9000, 2049, 7777, 12_345]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    return [tokens[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def check(
    engine: Engine,
    reference: Reference,
    documents: list[list[int]],
    outputs: list[Any],
    steps: int,
    penalty: float = 1.0,
) -> None:
    for tokens, output in zip(documents, outputs, strict=True):
        assert len(output.prompt_token_ids) == len(tokens)
        embeddings, ids = engine.shown(reference, tokens, output)
        said = list(output.outputs[0].token_ids)
        assert said == reference.greedy(embeddings, ids, steps, penalty)


def test_one_request(engine: Engine, reference: Reference, documents: list[list[int]]) -> None:
    outputs = engine.ask(documents[:1], greedy(STEPS))
    check(engine, reference, documents[:1], outputs, STEPS)


def test_gists_of_higher_levels_are_shown(
    engine: Engine, reference: Reference, documents: list[list[int]]
) -> None:
    outputs = engine.ask(documents[3:4], greedy(STEPS))
    levels = {e["level"] for e in engine.trace(outputs[0])["entries"] if e["kind"] == "gist"}
    assert max(levels) >= 2
    check(engine, reference, documents[3:4], outputs, STEPS)


def test_prefix_cache_hit(engine: Engine, reference: Reference, documents: list[list[int]]) -> None:
    first, second = (engine.ask(documents[1:2], greedy(STEPS)) for _ in range(2))
    assert first[0].num_cached_tokens == 0
    assert second[0].num_cached_tokens >= 448
    assert second[0].outputs[0].token_ids == first[0].outputs[0].token_ids
    check(engine, reference, documents[1:2], second, STEPS)


def test_repetition_penalty(engine: Engine, reference: Reference, documents: list[list[int]]) -> None:
    outputs = engine.ask(documents[2:3], greedy(STEPS, repetition_penalty=1.1))
    check(engine, reference, documents[2:3], outputs, STEPS, penalty=1.1)


def test_batch_of_eight_mixed_requests(engine: Engine, reference: Reference, documents: list[list[int]]) -> None:
    short = [tokens[:50] for tokens in documents[4:]]
    batch = [ids for pair in zip(documents[:4], short, strict=True) for ids in pair]
    outputs = engine.ask(batch, greedy(STEPS))
    check(engine, reference, documents[:4], outputs[0::2], STEPS)
    for ids, output in zip(short, outputs[1::2], strict=True):
        assert list(output.outputs[0].token_ids) == reference.greedy_tokens(ids, STEPS)


def test_chunked_prefill(tight: Engine, reference: Reference, documents: list[list[int]]) -> None:
    outputs = tight.ask(documents[4:5], greedy(STEPS))
    check(tight, reference, documents[4:5], outputs, STEPS)


def test_forced_preemption(tight: Engine, reference: Reference, documents: list[list[int]]) -> None:
    before = tight.metric("vllm:num_preemptions")
    steps = 80
    outputs = tight.ask(documents[5:8], greedy(steps))
    assert tight.metric("vllm:num_preemptions") > before, "the KV cache was not small enough to force a preemption"
    check(tight, reference, documents[5:8], outputs, steps)
