"""A request that fits the window is what stock vLLM makes of it, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest
from engines import Engine
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

PROMPTS = 20
STEPS = 8


@pytest.fixture(scope="module")
def stock(start_engine: Callable[..., Engine]) -> Engine:
    """The plugin is installed here, and not asked for."""
    return start_engine(None, max_num_batched_tokens=2048)


def answers(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[Any]:
    """One request after the other: in a batch, arrival times would decide which requests share a kernel call."""
    return [engine.ask([prompt], params)[0] for prompt in prompts]


def test_same_tokens_and_logprobs(engine: Engine, stock: Engine, tokens: list[int]) -> None:
    lengths = [1, 31, 32, 33, 64, 100, 200, 300, 400, 511, 512] + [40 * i for i in range(1, PROMPTS - 10)]
    prompts = [tokens[1000 * i : 1000 * i + length] for i, length in enumerate(lengths)]
    assert len(prompts) == PROMPTS
    params = SamplingParams(max_tokens=STEPS, temperature=0, logprobs=5, repetition_penalty=1.1)
    trees = engine.trees()
    for ours, theirs in zip(answers(engine, prompts, params), answers(stock, prompts, params), strict=True):
        assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
        assert ours.outputs[0].logprobs == theirs.outputs[0].logprobs
        assert ours.num_cached_tokens == theirs.num_cached_tokens
    assert engine.trees() == trees, "a request that fits must not be stored"


def test_a_prompt_beyond_the_window_that_fits_with_its_answer_is_left_alone(
    engine: Engine, stock: Engine, tokens: list[int]
) -> None:
    params = SamplingParams(max_tokens=STEPS, temperature=0, logprobs=1)
    prompt = tokens[5000:6000]  # window 512, max_model_len 1,100
    (ours,), (theirs,) = answers(engine, [prompt], params), answers(stock, [prompt], params)
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    assert ours.outputs[0].logprobs == theirs.outputs[0].logprobs


def test_it_is_left_alone_until_its_answer_has_filled_the_engine(
    engine: Engine, stock: Engine, tokens: list[int]
) -> None:
    """Whatever max_tokens says; stock vLLM ends there, and here the answer goes on."""
    params = SamplingParams(max_tokens=60, temperature=0, ignore_eos=True)
    prompt = tokens[7000:8080]
    (ours,), (theirs,) = answers(engine, [prompt], params), answers(stock, [prompt], params)
    assert len(theirs.outputs[0].token_ids) == 20 and theirs.outputs[0].finish_reason == "length"
    assert ours.outputs[0].token_ids[:20] == theirs.outputs[0].token_ids
    assert len(ours.outputs[0].token_ids) == 60


def test_an_unset_max_tokens_is_the_rest_of_the_engine(engine: Engine, stock: Engine, tokens: list[int]) -> None:
    params = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    prompt = tokens[7000:8080]
    (ours,), (theirs,) = answers(engine, [prompt], params), answers(stock, [prompt], params)
    assert len(theirs.outputs[0].token_ids) == 20
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    assert ours.outputs[0].finish_reason == theirs.outputs[0].finish_reason == "length"


def test_stock_engine_beside_an_active_one_refuses_long_prompts(stock: Engine, tokens: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="1100"):
        stock.ask([tokens[:5000]], SamplingParams(max_tokens=1))
