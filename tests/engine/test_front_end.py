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


@pytest.mark.parametrize("length", [1, 500, 800, 999])
@pytest.mark.parametrize("default", [300, 3000])
def test_a_default_of_the_server_is_no_number_that_somebody_named(
    config: SimpleNamespace, length: int, default: int
) -> None:
    """As of a generation_config.json with max_new_tokens, which vLLM puts in place of none."""
    setattr(config.model_config, front_end.DEFAULT_MAX_TOKENS, default)
    asked = request(length, default)
    front_end.settle_max_tokens(config, asked)
    assert asked.sampling_params.max_tokens == min(default, ENGINE - length)
    assert fits(asked, RequestOptions(750), ENGINE)


def test_a_default_of_the_server_on_a_history(config: SimpleNamespace) -> None:
    setattr(config.model_config, front_end.DEFAULT_MAX_TOKENS, 3000)
    asked = request(50_000, 3000)
    front_end.settle_max_tokens(config, asked)
    assert asked.sampling_params.max_tokens == ENGINE
    assert not RequestOptions.of(asked.sampling_params, 750).fold
    said = request(50_000, 3000, extra_args={"megacontext_fold": True})
    front_end.settle_max_tokens(config, said)
    assert RequestOptions.of(said.sampling_params, 750).fold, "whoever said so, meant it"
    more = request(50_000, 5000)
    front_end.settle_max_tokens(config, more)
    assert more.sampling_params.max_tokens == 5000
    assert RequestOptions.of(more.sampling_params, 750).fold


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


def test_what_cannot_be_folded_is_answered_as_stock_does(config: SimpleNamespace) -> None:
    """Its endpoints leave an answer what the engine has room for, and refuse more than the engine has at all."""
    asked = request(500, 600, prompt_logprobs=1)
    front_end.check_request(config, asked)
    assert asked.sampling_params.max_tokens == 500
    asked.mm_features, asked.sampling_params = [object()], SamplingParams(max_tokens=900)
    front_end.check_request(config, asked)
    assert asked.sampling_params.max_tokens == 500
    with pytest.raises(VLLMValidationError, match="min_tokens"):
        front_end.check_request(config, request(500, 600, prompt_logprobs=1, min_tokens=550))
    with pytest.raises(VLLMValidationError, match="max_tokens=1200.*window of 1,000.*prompt_logprobs.*Lower max_tok"):
        front_end.check_request(config, request(500, 1200, prompt_logprobs=1))
    within = request(500, 500, prompt_logprobs=1)
    front_end.check_request(config, within)
    assert within.sampling_params.max_tokens == 500


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


def test_offline_beam_search_ends_with_the_engine(config: SimpleNamespace) -> None:
    steps: list[int] = []
    wrapped = front_end._wrap_beam_search_step(lambda self, instances_batch, **options: steps.append(1) or True)
    llm = SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config))
    fitting, grown = (
        SimpleNamespace(beams=[SimpleNamespace(tokens=[1] * length) for length in (3, longest)])
        for longest in (ENGINE - 1, ENGINE)
    )
    assert wrapped(llm, [fitting], beam_width=2) is True
    with pytest.raises(VLLMValidationError, match="window of 1,000 tokens"):
        wrapped(llm, instances_batch=[fitting, grown], beam_width=2)
    assert steps == [1]
    config.scheduler_config.scheduler_cls = None
    wrapped(llm, [grown])
    assert len(steps) == 2
