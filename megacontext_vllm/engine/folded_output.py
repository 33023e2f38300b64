"""In the workers: penalties count all of an answer, also what was folded into the history and is output no longer.

OpenAI's presence and frequency penalties count what was said, and an answer that is folded has still said it. vLLM
counts the output tokens that stand behind the prompt; what came before them travels with the sampling parameters, so
that both of vLLM's model runners have it, also after a preemption.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams

from megacontext_vllm.engine.patches import Patch

FOLDED = "megacontext_folded"
"""Name in ``SamplingParams.extra_args``: uint32 [n], the tokens of the answer before those that are output. Set by the
scheduler only: as an argument of a request it is refused as unknown."""


def remember_folded(params: SamplingParams, folded: np.ndarray) -> None:
    """Note in ``params`` what was folded of its answer, if it has penalties that count it."""
    if params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0:
        params.extra_args = {**(params.extra_args or {}), FOLDED: folded}


def _folded(params: SamplingParams | None) -> np.ndarray | None:
    return (params.extra_args or {}).get(FOLDED) if params is not None else None


class Output(list[int]):
    """The output tokens of a request, to vLLM a list as any other, and what it said before them."""

    def __init__(self, tokens: Sequence[int], folded: np.ndarray) -> None:
        super().__init__(tokens)
        self.folded = folded.tolist()


def _everything(rows: list[list[int]], requests: list[list[int]]) -> list[list[int]]:
    """``rows``: what is output in each row of the logits; ``requests``: the list of the request it belongs to."""
    return [
        [*request.folded, *row] if isinstance(request, Output) else row
        for row, request in zip(rows, requests, strict=True)
    ]


def _wrap_input_batch_add_request(original: Any) -> Any:
    def add_request(self: Any, request: Any) -> Any:
        folded = _folded(request.sampling_params)
        if folded is not None:
            request.output_token_ids = Output(request.output_token_ids, folded)
        return original(self, request)

    return add_request


def _wrap_apply_penalties(original: Any) -> Any:
    def apply_penalties(logits: Any, sampling_metadata: Any, output_token_ids: Any) -> Any:
        requests = sampling_metadata.output_token_ids
        if any(isinstance(request, Output) for request in requests):
            output_token_ids = _everything(output_token_ids, requests)
        return original(logits, sampling_metadata, output_token_ids)

    return apply_penalties


def _wrap_apply_penalties_to_drafts(original: Any) -> Any:
    def apply_penalties(
        logits: Any, sampling_metadata: Any, metadata: Any, repeat_indices: Any, output_token_ids: Any
    ) -> Any:
        requests = sampling_metadata.output_token_ids
        if any(isinstance(request, Output) for request in requests):
            counts = metadata.num_draft_tokens
            each = [request for request, n in zip(requests, counts, strict=True) for _ in range(n)]
            output_token_ids = _everything(output_token_ids, each)
        return original(logits, sampling_metadata, metadata, repeat_indices, output_token_ids)

    return apply_penalties


_WAITING = "megacontext_folded"
"""Attribute of the newer runner's penalties: row of its table → what was folded, until the row is counted."""


def _wrap_penalties_add_request(original: Any) -> Any:
    def add_request(self: Any, req_idx: int, sampling_params: SamplingParams) -> Any:
        if (folded := _folded(sampling_params)) is not None:
            self.__dict__.setdefault(_WAITING, {})[req_idx] = folded
        return original(self, req_idx, sampling_params)

    return add_request


def _wrap_penalties_apply_staged_writes(original: Any) -> Any:
    def apply_staged_writes(self: Any) -> Any:
        result = original(self)
        for req_idx, folded in self.__dict__.pop(_WAITING, {}).items():
            counts = self.output_bin_counts[req_idx]
            said = torch.from_numpy(np.bincount(folded, minlength=len(counts)).astype(np.int32))
            counts += said.to(counts.device, non_blocking=True)
        return result

    return apply_staged_writes


_UNTIL = "vLLM's requests can have output that is not behind their prompt"

PATCHES = (
    Patch(
        target="vllm.v1.worker.gpu_input_batch:InputBatch.add_request",
        why="keeps what was folded of an answer beside its output tokens, for penalties",
        until="vLLM's first model runner goes, or " + _UNTIL,
        replace=_wrap_input_batch_add_request,
    ),
    Patch(
        target="vllm.v1.sample.sampler:Sampler.apply_penalties",
        why="penalties count what was folded of an answer, too",
        until="vLLM's first model runner goes, or " + _UNTIL,
        replace=_wrap_apply_penalties,
    ),
    Patch(
        target="vllm.v1.sample.rejection_sampler:RejectionSampler.apply_penalties",
        why="the same for the tokens that n-gram speculation proposes",
        until="vLLM's first model runner goes, or " + _UNTIL,
        replace=_wrap_apply_penalties_to_drafts,
    ),
    Patch(
        target="vllm.v1.worker.gpu.sample.penalties:PenaltiesState.add_request",
        why="keeps what was folded of an answer, in vLLM's second model runner, until its penalties are counted",
        until=_UNTIL,
        replace=_wrap_penalties_add_request,
    ),
    Patch(
        target="vllm.v1.worker.gpu.sample.penalties:PenaltiesState.apply_staged_writes",
        why="penalties count what was folded of an answer, too",
        until=_UNTIL,
        replace=_wrap_penalties_apply_staged_writes,
    ),
)
