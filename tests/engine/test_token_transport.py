"""Tokens of a long prompt on their way from the tokenizer to the planner: the same, however they travel."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.renderers import renderer_from_config
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import TokenizeParams
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from megacontext_vllm.engine.front_end import ENGINE_LENGTH
from megacontext_vllm.engine.giving_way import let_go
from megacontext_vllm.engine.plan import PlanRequest
from megacontext_vllm.engine.token_transport import (
    LONG,
    TokenArray,
    TokenList,
    _wrap_send_input,
    _wrap_validate_token_ids,
    packed,
    unpack,
)

WINDOW = 2048


def tokens(length: int = LONG + 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 150_000, length, dtype=np.int32)


def request(ids: list[int] | None, **given: Any) -> EngineCoreRequest:
    fields: dict[str, Any] = {
        "request_id": "r",
        "prompt_token_ids": ids,
        "mm_features": None,
        "sampling_params": SamplingParams(max_tokens=5),
        "pooling_params": None,
        "arrival_time": 1.5,
        "lora_request": None,
        "cache_salt": "salt",
        "data_parallel_rank": None,
    }
    return EngineCoreRequest(**fields | given)


def travelled(sent: EngineCoreRequest) -> EngineCoreRequest:
    """What the engine core makes of it."""
    frames = [bytearray(frame) for frame in MsgpackEncoder().encode(sent)]
    received: EngineCoreRequest = MsgpackDecoder(EngineCoreRequest).decode(frames)
    unpack(received)
    return received


def test_a_long_prompt_travels_as_an_array() -> None:
    ids = TokenList.of(tokens())
    sent = packed(request(ids), WINDOW)
    received = travelled(sent)
    assert isinstance(received.prompt_token_ids, TokenArray) and received.prompt_embeds is None
    assert list(received.prompt_token_ids) == ids == list(received.prompt_token_ids.copy())
    assert received.prompt_token_ids[5:900] == ids[5:900] and received.prompt_token_ids[-1] == ids[-1]
    assert (received.request_id, received.cache_salt, received.arrival_time) == ("r", "salt", 1.5)
    assert len(b"".join(bytes(frame) for frame in MsgpackEncoder().encode(sent))) < 4 * len(ids) + 2000
    held = Request.from_engine_core_request(received, None)
    assert held.num_prompt_tokens == len(ids) == len(held.all_token_ids)
    assert held.prompt_token_ids is not None
    plan = PlanRequest("r", "default", held.prompt_token_ids, 1024, False, behind=[7, 8]).tokens()
    assert plan.dtype == np.uint32 and plan.tolist() == [*ids, 7, 8]
    plan[0] += 1
    assert held.prompt_token_ids[0] == ids[0], "a plan's tokens are its own"
    let_go(held.prompt_token_ids)


@pytest.mark.parametrize(
    "sent",
    [
        request(tokens().tolist()),
        request(TokenList.of(tokens(LONG))),
        request(None, prompt_embeds=torch.ones(3, 4)),
        request([], prompt_embeds=torch.ones(3, 4)),
        request(TokenList.of(tokens()), sampling_params=SamplingParams(max_tokens=5, prompt_logprobs=1)),
        request(TokenList.of(tokens()), resumable=True),
    ],
)
def test_all_else_travels_as_ever(sent: EngineCoreRequest) -> None:
    assert packed(sent, WINDOW) is sent
    received = travelled(sent)
    assert received.prompt_token_ids == sent.prompt_token_ids
    assert (received.prompt_embeds is None) == (sent.prompt_embeds is None)


def test_what_fits_the_engine_travels_as_ever() -> None:
    sent = request(TokenList.of(tokens()))
    assert packed(sent, LONG + 1) is sent and packed(sent, LONG) is not sent
    assert isinstance(sent.prompt_token_ids, TokenList), "the front end keeps its list"


def test_only_for_an_engine_that_unpacks() -> None:
    sent = []
    send = _wrap_send_input(lambda self, kind, request, *engine: sent.append(request))
    stock = SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace()))
    ours = SimpleNamespace(vllm_config=SimpleNamespace(model_config=SimpleNamespace(**{ENGINE_LENGTH: WINDOW})))
    asked = request(TokenList.of(tokens()))
    send(stock, EngineCoreRequestType.ADD, asked)
    send(ours, EngineCoreRequestType.ABORT, ["r"])
    send(ours, EngineCoreRequestType.ADD, asked, b"engine")
    assert sent[0] is asked and sent[1] == ["r"]
    assert sent[2].prompt_token_ids == [] and sent[2].prompt_embeds is not None


def test_vllm_hands_the_array_on(model_dir: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the text of a request to what is sent: nothing of vLLM on the way makes a plain list of it."""
    monkeypatch.setenv("VLLM_PLUGINS", "megacontext")
    settings = {"max_model_len": WINDOW, "additional_config": {"megacontext": {}}}
    config = EngineArgs(model=str(model_dir), **settings).create_engine_config()
    renderer = renderer_from_config(config)
    given = [{"prompt": text[: LONG * 6]}]
    limits = TokenizeParams(max_total_tokens=10**7, add_special_tokens=False)
    (rendered,) = asyncio.run(renderer.render_cmpl_async(given, limits, prompt_extras={"cache_salt": "salt"}))
    ids = rendered["prompt_token_ids"]
    assert isinstance(ids, TokenList) and len(ids) > LONG
    assert ids == renderer.get_tokenizer().encode(given[0]["prompt"], add_special_tokens=False) == ids.array.tolist()


@pytest.mark.parametrize("wrong", [-1, 151_000])
def test_ids_beyond_the_vocabulary_are_refused_all_the_same(wrong: int) -> None:
    stock = BaseRenderer.validate_token_ids
    check = _wrap_validate_token_ids(getattr(stock, "__wrapped__", stock))
    renderer = SimpleNamespace(
        tokenizer=SimpleNamespace(max_token_id=149_999),
        model_config=SimpleNamespace(get_vocab_size=lambda: 150_500),
    )
    array = tokens()
    check(renderer, TokenList.of(array))
    check(renderer, TokenList.of(array[:0]))
    array[70] = wrong
    for ids in (TokenList.of(array), array.tolist()):
        with pytest.raises(VLLMValidationError, match=f"Token id {wrong} is out of vocabulary"):
            check(renderer, ids)
