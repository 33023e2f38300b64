"""The engine core's part: facts from the workers for the scheduler, and cheap preprocessing of long prompts."""

from collections.abc import Callable
from typing import Any

from megacontext_vllm.engine.activation import is_active
from megacontext_vllm.engine.description import WORKERS_ATTRIBUTE, check_reach, this_machine
from megacontext_vllm.engine.patches import Patch
from megacontext_vllm.engine.token_transport import unpack


def _wrap_initialize_kv_caches(original: Callable[..., Any]) -> Callable[..., Any]:
    def _initialize_kv_caches(self: Any, vllm_config: Any) -> Any:
        result = original(self, vllm_config)
        if is_active(vllm_config):
            described = self.collective_rpc("megacontext_describe")
            check_reach(described, this_machine())
            object.__setattr__(vllm_config, WORKERS_ATTRIBUTE, described[0])
        return result

    return _initialize_kv_caches


def _wrap_preprocess_add_request(original: Callable[..., Any]) -> Callable[..., Any]:
    def preprocess_add_request(self: Any, request: Any) -> Any:
        if is_active(self.vllm_config):
            unpack(request)
        hasher = self.request_block_hasher
        long = len(request.prompt_token_ids or ()) > self.vllm_config.model_config.max_model_len
        if hasher is None or not long or not is_active(self.vllm_config):
            return original(self, request)
        # Block hashes of a million tokens take half a second and are thrown away: the prompt will be replaced.
        self.request_block_hasher = None
        try:
            prepared, wave = original(self, request)
        finally:
            self.request_block_hasher = hasher
        prepared._block_hasher = hasher
        return prepared, wave

    return preprocess_add_request


PATCHES = (
    Patch(
        target="vllm.v1.engine.core:EngineCore._initialize_kv_caches",
        why="asks the workers for the model fingerprint and the gist pool's size just before the scheduler is made",
        until="vLLM hands schedulers a start-up report of their workers",
        replace=_wrap_initialize_kv_caches,
    ),
    Patch(
        target="vllm.v1.engine.core:EngineCore.preprocess_add_request",
        why="unpacks the tokens of a long prompt, and leaves out the block hashes of one that will be replaced",
        until="vLLM sends prompt tokens as an array and computes block hashes lazily",
        replace=_wrap_preprocess_add_request,
    ),
)
