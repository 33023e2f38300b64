"""The front end's part: the length limit is lifted, and what cannot work is refused with HTTP 400 before the engine."""

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from megacontext_vllm.config import SECTION, parse_config
from megacontext_vllm.engine.activation import is_active
from megacontext_vllm.engine.patches import Patch
from megacontext_vllm.engine.request_options import FOLD, RequestOptions, fits, unsupported_reason
from megacontext_vllm.errors import RequestError

# Left on the front end's configuration when the limit is lifted: the engine's own max_model_len, and the max_tokens of
# the model's generation_config.json or of --override-generation-config, None without one.
ENGINE_LENGTH = "megacontext_engine_max_model_len"
DEFAULT_MAX_TOKENS = "megacontext_default_max_tokens"


_lifted = False


def is_lifted() -> bool:
    """Whether this process is the front end of an engine whose length limit was lifted."""
    return _lifted


def _wrap_apply_ready_response(original: Callable[..., Any]) -> Callable[..., Any]:
    def _apply_ready_response(self: Any, payload: bytes) -> None:
        original(self, payload)
        if not is_active(self.vllm_config):
            return
        model_config = self.vllm_config.model_config
        # vLLM keeps the smallest length of all engines; behind a lifted limit that has to be remembered here.
        smallest = min(model_config.max_model_len, getattr(model_config, ENGINE_LENGTH, model_config.max_model_len))
        object.__setattr__(model_config, ENGINE_LENGTH, smallest)
        default = model_config.get_diff_sampling_param().get("max_tokens")
        object.__setattr__(model_config, DEFAULT_MAX_TOKENS, default)
        global _lifted
        _lifted = True
        settings = parse_config(self.vllm_config.additional_config[SECTION])
        model_config.max_model_len = max(settings.history_limit, model_config.max_model_len)

    return _apply_ready_response


def _wrap_process_inputs(original: Callable[..., Any]) -> Callable[..., Any]:
    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(self, *args, **kwargs)
        if is_active(self.vllm_config):
            settle_max_tokens(self.vllm_config, request)
            check_request(self.vllm_config, request)
        return request

    return process_inputs


def settle_max_tokens(vllm_config: Any, request: Any) -> None:
    """Undo what the lifted limit does to an unset ``max_tokens``: it arrives as all that is left of history_limit, or
    as the server's default if that is less.

    A prompt that fits the engine gets what stock vLLM gives it, the rest of the engine's length; a longer one an
    answer that can at most fill the engine; neither more than the default. Raises VLLMValidationError if ``min_tokens``
    is more than that.
    """
    params = request.sampling_params
    engine_length = getattr(vllm_config.model_config, ENGINE_LENGTH)
    default = getattr(vllm_config.model_config, DEFAULT_MAX_TOKENS, None)
    length = len(request.prompt_token_ids or ())
    left = vllm_config.model_config.max_model_len - length
    # A client that named a number gets it. (Nothing tells one who named the default from one who named none.)
    if params is None or params.max_tokens not in (left, default):
        return
    if length < engine_length:
        params.max_tokens = min(params.max_tokens, engine_length - length)
    else:
        params.max_tokens = min(params.max_tokens, engine_length)
        params.extra_args = {FOLD: False, **(params.extra_args or {})}
    _check_min_tokens(params)


def _check_min_tokens(params: Any) -> None:
    if params.min_tokens > params.max_tokens:
        raise VLLMValidationError(
            f"min_tokens must be less than or equal to max_tokens={params.max_tokens}, got {params.min_tokens}.",
            parameter="min_tokens",
            value=params.min_tokens,
        )


def _wrap_beam_search(original: Callable[..., Any]) -> Callable[..., Any]:
    def beam_search(self: Any, prompt: Any, request_id: str, params: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = self.engine_client.vllm_config
        if is_active(vllm_config):
            engine_length = getattr(vllm_config.model_config, ENGINE_LENGTH)
            length = len(prompt.get("prompt_token_ids") or ())
            if length >= engine_length:
                raise VLLMValidationError(
                    f"Beam search works on prompts that fit the model's window of {engine_length:,} tokens; this one "
                    f"has {length:,}. Leave out use_beam_search.",
                    parameter="use_beam_search",
                )
            params.max_tokens = min(params.max_tokens, engine_length - length)
        return original(self, prompt, request_id, params, *args, **kwargs)

    return beam_search


def _wrap_beam_search_step(original: Callable[..., Any]) -> Callable[..., Any]:
    def _beam_search_step(self: Any, instances_batch: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = self.llm_engine.vllm_config
        if is_active(vllm_config):
            engine_length = getattr(vllm_config.model_config, ENGINE_LENGTH)
            longest = max((len(beam.tokens) for one in instances_batch for beam in one.beams), default=0)
            if longest >= engine_length:
                # Each step of a beam would be planned anew, and its score be that of another Working Context.
                raise VLLMValidationError(
                    f"Beam search works within the model's window of {engine_length:,} tokens, and a beam has come to "
                    f"{longest:,}. Use generate, or a shorter prompt or max_tokens.",
                    parameter="prompts",
                    value=longest,
                )
        return original(self, instances_batch, *args, **kwargs)

    return _beam_search_step


def check_request(vllm_config: Any, request: Any) -> None:
    """Raise VLLMValidationError (HTTP 400) for a request that the engine could not serve.

    An answer that cannot be folded is left what the engine has room for.
    """
    max_model_len = getattr(vllm_config.model_config, ENGINE_LENGTH)
    settings = parse_config(vllm_config.additional_config[SECTION])
    window = settings.window_for(max_model_len)
    try:
        options = RequestOptions.of(request.sampling_params, window)
    except RequestError as error:
        raise VLLMValidationError(str(error), parameter="vllm_xargs") from error
    reason = unsupported_reason(request)
    length = len(request.prompt_token_ids or ())
    asked = request.sampling_params.max_tokens if request.sampling_params is not None else 0
    if fits(request, options, max_model_len):
        if reason is not None and length < max_model_len < length + (asked or 0):
            if asked > max_model_len:
                raise VLLMValidationError(
                    f"max_tokens={asked} is more than the model's window of {max_model_len:,}, and the answer cannot "
                    f"be folded here: {reason}. Lower max_tokens.",
                    parameter="max_tokens",
                    value=asked,
                )
            request.sampling_params.max_tokens = max_model_len - length  # as stock vLLM's endpoints do
            _check_min_tokens(request.sampling_params)
        return
    if reason is not None:
        raise VLLMValidationError(
            f"This request has {length:,} prompt tokens and the model's window is {max_model_len:,}. A longer history "
            f"is served from a Working Context, which cannot be done here: {reason}.",
            parameter="prompt",
            value=length,
        )


PATCHES = (
    Patch(
        target="vllm.v1.engine.core_client:MPClient._apply_ready_response",
        why="lifts the front end's max_model_len to history_limit, once the engine's real one is known",
        until="vLLM separates the longest accepted prompt from the engine's context length",
        replace=_wrap_apply_ready_response,
    ),
    Patch(
        target="vllm.v1.engine.input_processor:InputProcessor.process_inputs",
        why="refuses, with 400, what cannot be served from a Working Context (prompt_logprobs, media, bad options)",
        until="vLLM offers plugins a request validation hook (current_platform.validate_request has one per platform)",
        replace=_wrap_process_inputs,
    ),
    Patch(
        target="vllm.entrypoints.generate.beam_search.online:BeamSearchOnlineMixin.beam_search",
        why="bounds beam search by the engine's length: the lifted limit would let it run for millions of steps",
        until="vLLM separates the longest accepted prompt from the engine's context length",
        replace=_wrap_beam_search,
    ),
    Patch(
        target="vllm.entrypoints.generate.beam_search.offline:BeamSearchOfflineMixin._beam_search_step",
        why="the same for LLM.beam_search, which asks for one token at a time",
        until="vLLM separates the longest accepted prompt from the engine's context length",
        replace=_wrap_beam_search_step,
    ),
)
