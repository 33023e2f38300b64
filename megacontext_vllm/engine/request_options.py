"""What a request may say through vLLM's own ``vllm_xargs``, and whether it needs a Working Context at all."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from vllm.sampling_params import SamplingParams

from megacontext_vllm.errors import RequestError
from megacontext_vllm.tree.nodes import BLOCK

PREFIX = "megacontext_"
FOLD = "megacontext_fold"
KNOWN = ("megacontext_window", "megacontext_trace", FOLD)
SMALLEST_WINDOW = 4 * BLOCK


@dataclass(frozen=True)
class RequestOptions:
    """``window``: Working Context budget in entries; ``window_asked``: the request named it itself.

    ``fold``: where the answer has filled the engine's positions, what was said first is folded into the history and
    the answer goes on; else it ends there.
    """

    window: int
    window_asked: bool = False
    trace: bool = False
    fold: bool = True

    @classmethod
    def of(cls, params: SamplingParams | None, engine_window: int) -> "RequestOptions":
        """Read ``megacontext_*`` from the sampling parameters' extra arguments.

        Raises RequestError for an unknown name (with the closest known one) and for a bad value.
        """
        extra: Mapping[str, Any] = (params.extra_args if params is not None else None) or {}
        window, asked, trace, fold = engine_window, False, False, True
        for name, value in extra.items():
            if not name.startswith(PREFIX):
                continue
            if name == "megacontext_window":
                window, asked = _window(value, engine_window), True
            elif name == "megacontext_trace":
                trace = _flag(name, value)
            elif name == FOLD:
                fold = _flag(name, value)
            else:
                close = difflib.get_close_matches(name, KNOWN, n=1)
                hint = f" Did you mean '{close[0]}'?" if close else f" Known: {', '.join(KNOWN)}."
                raise RequestError(f"Unknown argument '{name}' in vllm_xargs.{hint}")
        return cls(window, asked, trace, fold)


def _window(value: Any, engine_window: int) -> int:
    try:
        window = int(value)
        whole = window == float(value)
    except (TypeError, ValueError, OverflowError):  # the last for infinity
        window, whole = -1, False
    if not whole or not SMALLEST_WINDOW <= window <= engine_window:
        raise RequestError(
            f"megacontext_window={value!r} must be a whole number of entries from {SMALLEST_WINDOW} to this engine's "
            f"window of {engine_window}."
        )
    return window


def _flag(name: str, value: Any) -> bool:
    known = {"1": True, "true": True, "0": False, "false": False}
    if str(value).lower() not in known:
        raise RequestError(f"{name}={value!r} must be true or false.")
    return known[str(value).lower()]


class AnyRequest(Protocol):
    """The fields that vLLM's EngineCoreRequest and Request have in common and that decide."""

    prompt_token_ids: list[int] | None
    prompt_embeds: Any
    mm_features: Any
    sampling_params: SamplingParams | None
    resumable: bool


def fits(request: AnyRequest, options: RequestOptions, max_model_len: int) -> bool:
    """Whether stock vLLM serves the request as it is, at least until its answer has filled the engine's positions.

    Until then the plugin is inert. A prompt that fits the engine is shown whole, however long an answer is asked for:
    many clients name a large ``max_tokens`` and get a short answer.
    """
    length = len(request.prompt_token_ids or ())
    if length <= options.window or options.window_asked:
        return length <= options.window
    return length + (request.sampling_params is not None) <= max_model_len  # room for a token, if it asks for any


def outgrows(request: AnyRequest, options: RequestOptions, max_model_len: int) -> bool:
    """Whether the answer asked for is longer than the engine has room for, and of a kind that can be folded."""
    params = request.sampling_params
    if params is None or params.max_tokens is None or not options.fold or unsupported_reason(request) is not None:
        return False
    length = len(request.prompt_token_ids or ())
    shown = length if fits(request, options, max_model_len) else options.window
    return shown + params.max_tokens > max_model_len


def needs_working_context(request: AnyRequest, options: RequestOptions, max_model_len: int) -> bool:
    """Whether the request is too long for the engine and of a kind that a Working Context can stand in for."""
    return not fits(request, options, max_model_len) and unsupported_reason(request) is None


def unsupported_reason(request: AnyRequest) -> str | None:
    """Why a request that does not fit cannot have a Working Context, or None if it can."""
    if request.sampling_params is None:
        return "pooling models read their whole input; shorten it"
    if request.prompt_embeds is not None:
        return "prompt embeddings cannot be stored as history; send token ids or text"
    if request.mm_features:
        return "images, audio and video cannot be stored as history; send text"
    if request.resumable:
        return "streaming-input sessions are not supported on a history; send the whole prompt at once"
    if request.sampling_params.prompt_logprobs is not None:
        return (
            "prompt_logprobs, which echo asks for, too, needs every prompt token in the model, and only a Working "
            "Context is; leave it out"
        )
    return None
