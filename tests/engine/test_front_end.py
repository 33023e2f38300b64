"""What the lifted length limit must not change: default answer lengths and beam search."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from megacontext_vllm.engine import front_end
from megacontext_vllm.engine.activation import SCHEDULERS
from megacontext_vllm.engine.request_options import RequestOptions, fits, outgrows

ENGINE = 1000
LIFTED = 1 << 24


@pytest.fixture
def config() -> SimpleNamespace:
    model = SimpleNamespace(max_model_len=LIFTED, **{front_end.ENGINE_LENGTH: ENGINE})
    scheduler = SimpleNamespace(scheduler_cls=SCHEDULERS[False])
    return SimpleNamespace(model_config=model, scheduler_config=scheduler, additional_config={"megacontext": {}})


def request(length: int, max_tokens: int, **params: Any) -> SimpleNamespace:
    return SimpleNamespace(
        prompt_token_ids=[1] * length,
        prompt_embeds=None,
        mm_features=None,
        resumable=False,
        sampling_params=SamplingParams(max_tokens=max_tokens, **params),
    )


@pytest.mark.parametrize("length", [1, 500, 800, 999])
def test_unset_max_tokens_of_a_prompt_that_fits_is_what_stock_gives(config: SimpleNamespace, length: int) -> None:
    asked = request(length, LIFTED - length)
    front_end.settle_max_tokens(config, asked)
    assert asked.sampling_params.max_tokens == ENGINE - length
    assert fits(asked, RequestOptions(750), ENGINE)


@pytest.mark.parametrize("length", [1000, 1001, 50_000])
def test_unset_max_tokens_of_a_history_is_bounded_by_the_engine(config: SimpleNamespace, length: int) -> None:
    asked = request(length, LIFTED - length)
    front_end.settle_max_tokens(config, asked)
    assert asked.sampling_params.max_tokens == ENGINE
    assert not fits(asked, RequestOptions(750), ENGINE)
    options = RequestOptions.of(asked.sampling_params, 750)
    assert not options.fold and not outgrows(asked, options, ENGINE), "nobody asked for more"


def test_an_asked_for_max_tokens_stays(config: SimpleNamespace) -> None:
    asked = request(50_000, 300)
    front_end.settle_max_tokens(config, asked)
    assert asked.sampling_params.max_tokens == 300


def test_an_asked_for_max_tokens_beyond_the_engine_is_folded(config: SimpleNamespace) -> None:
    for length in (10, 50_000):
        asked = request(length, 20_000)
        front_end.settle_max_tokens(config, asked)
        front_end.check_request(config, asked)
        assert asked.sampling_params.max_tokens == 20_000
        assert outgrows(asked, RequestOptions.of(asked.sampling_params, 750), ENGINE)


def test_what_cannot_be_folded_is_refused_as_stock_does(config: SimpleNamespace) -> None:
    with pytest.raises(VLLMValidationError, match="max_tokens=600.*window of 1,000.*prompt_logprobs.*Lower max_tokens"):
        front_end.check_request(config, request(500, 600, prompt_logprobs=1))
    front_end.check_request(config, request(500, 500, prompt_logprobs=1))


def test_min_tokens_beyond_what_is_left(config: SimpleNamespace) -> None:
    with pytest.raises(VLLMValidationError, match="min_tokens"):
        front_end.settle_max_tokens(config, request(900, LIFTED - 900, min_tokens=200))


def beams(config: SimpleNamespace, length: int, max_tokens: int) -> int:
    """max_tokens as vLLM's beam search gets it."""
    seen = []
    wrapped = front_end._wrap_beam_search(lambda self, prompt, request_id, params: seen.append(params.max_tokens))
    serving = SimpleNamespace(engine_client=SimpleNamespace(vllm_config=config))
    wrapped(serving, {"prompt_token_ids": [1] * length}, "r", SimpleNamespace(max_tokens=max_tokens))
    return seen[0]


def test_beam_search_ends_with_the_engine(config: SimpleNamespace) -> None:
    assert beams(config, 400, LIFTED - 400) == 600
    assert beams(config, 400, 50) == 50
    with pytest.raises(VLLMValidationError, match="beam_search"):
        beams(config, 1000, 5)
