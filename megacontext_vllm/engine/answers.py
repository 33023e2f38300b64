"""In the workers: a request that comes back with a new prompt keeps the end of its answer as output."""

from typing import Any

from megacontext_vllm.engine.patches import Patch

ANSWER = "megacontext_answer"
"""Attribute of vLLM's NewRequestData: output tokens that a request comes back with (list of int)."""


def _wrap_update_streaming_request(original: Any) -> Any:
    def _update_streaming_request(self: Any, req_id: str, new_req_data: Any) -> Any:
        state = original(self, req_id, new_req_data)
        if answer := getattr(new_req_data, ANSWER, None):
            state.output_token_ids.extend(answer)
        return state

    return _update_streaming_request


PATCHES = (
    Patch(
        target="vllm.v1.worker.gpu_model_runner:GPUModelRunner._update_streaming_request",
        why="keeps the end of a folded answer output, for what counts output tokens: penalties, min_tokens",
        until="vLLM's first model runner goes, or takes prefill_token_ids as its second one does",
        replace=_wrap_update_streaming_request,
    ),
)
