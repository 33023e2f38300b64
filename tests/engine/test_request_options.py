from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from vllm.sampling_params import SamplingParams

from megacontext_vllm.engine.request_options import (
    RequestOptions,
    fits,
    needs_working_context,
    outgrows,
    unsupported_reason,
)
from megacontext_vllm.errors import RequestError

WINDOW, MAX_LEN = 768, 1024


@dataclass
class Asked:
    """The fields of vLLM's requests that decide."""

    prompt_token_ids: list[int] | None = None
    sampling_params: SamplingParams | None = field(default_factory=lambda: SamplingParams(max_tokens=16))
    prompt_embeds: Any = None
    mm_features: Any = None
    resumable: bool = False


def of(**extra: object) -> RequestOptions:
    return RequestOptions.of(SamplingParams(extra_args=extra), WINDOW)


def prompt(length: int, **fields: Any) -> Asked:
    return Asked([1] * length, **fields)


def test_nothing_asked() -> None:
    default = RequestOptions(WINDOW, False, False)
    assert RequestOptions.of(None, WINDOW) == RequestOptions.of(SamplingParams(), WINDOW) == of() == default


def test_other_peoples_arguments_are_left_alone() -> None:
    assert of(kv_transfer_params={}, window=3, Megacontext_window=5) == RequestOptions(WINDOW)


# vllm_xargs may arrive as text, as JSON numbers or as floats.
@pytest.mark.parametrize("value", [256, "256", 256.0])
def test_window(value: object) -> None:
    assert of(megacontext_window=value) == RequestOptions(256, window_asked=True)


def test_the_engines_own_window_counts_as_asked() -> None:
    assert of(megacontext_window=WINDOW).window_asked
    assert of(megacontext_window=128).window == 128


@pytest.mark.parametrize("value", [127, WINDOW + 1, 0, -1, "many", None, [256], "", float("nan"), float("inf"), 256.7])
def test_a_bad_window_names_the_range(value: object) -> None:
    with pytest.raises(RequestError, match=f"from 128 to .*{WINDOW}"):
        of(megacontext_window=value)


@pytest.mark.parametrize(
    ("value", "meant"),
    [(True, True), ("true", True), (1, True), ("1", True), (False, False), ("False", False), (0, False)],
)
def test_trace(value: object, meant: bool) -> None:
    assert of(megacontext_trace=value).trace is meant


def test_fold() -> None:
    assert of().fold and not of(megacontext_fold="false").fold
    with pytest.raises(RequestError, match=r"megacontext_fold=.*true or false"):
        of(megacontext_fold="never")


@pytest.mark.parametrize(
    ("length", "max_tokens", "window", "grows"),
    [
        (10, 16, WINDOW, False),
        (10, MAX_LEN - 10, WINDOW, False),
        (10, MAX_LEN - 9, WINDOW, True),
        (10, 100_000, WINDOW, True),
        (10, None, WINDOW, False),
        (50_000, MAX_LEN - WINDOW, WINDOW, False),
        (50_000, MAX_LEN - WINDOW + 1, WINDOW, True),
        (50_000, MAX_LEN - WINDOW + 1, 256, False),
    ],
)
def test_outgrows(length: int, max_tokens: int | None, window: int, grows: bool) -> None:
    params = SamplingParams(max_tokens=max_tokens)
    assert outgrows(prompt(length, sampling_params=params), RequestOptions(window), MAX_LEN) is grows
    assert not outgrows(prompt(length, sampling_params=params), RequestOptions(window, fold=False), MAX_LEN)
    params.prompt_logprobs = 1
    assert not outgrows(prompt(length, sampling_params=params), RequestOptions(window), MAX_LEN)


@pytest.mark.parametrize("value", ["yes", 2, None, ""])
def test_a_bad_flag_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match=r"megacontext_trace=.*true or false"):
        of(megacontext_trace=value)


@pytest.mark.parametrize(
    ("name", "meant"), [("megacontext_windw", "megacontext_window"), ("megacontext_traces", "megacontext_trace")]
)
def test_an_unknown_name_names_the_closest(name: str, meant: str) -> None:
    with pytest.raises(RequestError, match=f"'{name}'.*Did you mean '{meant}'"):
        of(**{name: 1})


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(RequestError, match="megacontext_window, megacontext_trace"):
        of(megacontext_zzzzzzzzzzzzzzzzzzzzzzzz=1)


@pytest.mark.parametrize(
    ("length", "max_tokens", "window_asked", "fitting"),
    [
        (10, 16, False, True),
        (WINDOW, 16, False, True),
        (WINDOW, None, False, True),
        (WINDOW, 10_000, False, True),  # vLLM ends it at max_model_len, as ever
        (WINDOW + 1, MAX_LEN - WINDOW - 1, False, True),  # within the engine's own length: stock vLLM serves it
        (WINDOW + 1, MAX_LEN - WINDOW, False, True),  # until the answer has filled the engine
        (MAX_LEN - 1, 10_000, False, True),
        (MAX_LEN, 16, False, False),
        (MAX_LEN * 100, 1, False, False),
        (200, 16, True, True),
        (256, 16, True, True),
        (257, 16, True, False),  # it asked for 256 entries, and gets them
    ],
)
def test_fits(length: int, max_tokens: int | None, window_asked: bool, fitting: bool) -> None:
    options = RequestOptions(256 if window_asked else WINDOW, window_asked)
    request = prompt(length, sampling_params=SamplingParams(max_tokens=max_tokens))
    assert fits(request, options, MAX_LEN) is fitting
    assert needs_working_context(request, options, MAX_LEN) is not fitting


def test_a_pooling_model_reads_as_much_as_the_engine_holds() -> None:
    assert fits(prompt(MAX_LEN, sampling_params=None), RequestOptions(WINDOW), MAX_LEN)
    assert not fits(prompt(MAX_LEN + 1, sampling_params=None), RequestOptions(WINDOW), MAX_LEN)


def test_a_request_without_token_ids_fits() -> None:
    request = Asked(None, prompt_embeds=torch.zeros(5000, 4))
    assert fits(request, RequestOptions(WINDOW), MAX_LEN)
    assert not needs_working_context(request, RequestOptions(WINDOW), MAX_LEN)


UNSUPPORTED = {
    "pooling": {"sampling_params": None},
    "prompt embeddings": {"prompt_embeds": torch.zeros(1, 4)},
    "images": {"mm_features": [object()]},
    "streaming-input": {"resumable": True},
    "prompt_logprobs": {"sampling_params": SamplingParams(max_tokens=1, prompt_logprobs=0)},
}


@pytest.mark.parametrize("word", UNSUPPORTED)
def test_what_a_working_context_cannot_stand_in_for(word: str) -> None:
    long = prompt(5000, **UNSUPPORTED[word])
    assert word in (unsupported_reason(long) or "")
    assert not fits(long, RequestOptions(WINDOW), MAX_LEN)
    assert not needs_working_context(long, RequestOptions(WINDOW), MAX_LEN)
    # The same within the window is stock vLLM's business.
    assert fits(prompt(50, **UNSUPPORTED[word]), RequestOptions(WINDOW), MAX_LEN)


def test_an_ordinary_long_request_is_supported() -> None:
    assert unsupported_reason(prompt(5000, mm_features=[])) is None
    assert unsupported_reason(prompt(5000, sampling_params=SamplingParams(max_tokens=1, logprobs=5, n=3))) is None
