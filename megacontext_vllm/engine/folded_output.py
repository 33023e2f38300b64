"""In the workers: penalties count all of an answer, also what was folded into the history and is output no longer.

OpenAI's presence and frequency penalties count what was said, and an answer that is folded has still said it. vLLM
counts the output tokens that stand behind the prompt; what came before them travels with the sampling parameters, so
that both of vLLM's model runners have it, also after a preemption. It is counted once per request, so that a step costs
the same however long the answer is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.torch_utils import async_tensor_h2d

from megacontext_vllm.engine.patches import Patch

FOLDED = "megacontext_folded"
"""Name in ``SamplingParams.extra_args`` of the ``Folded`` of an answer. Set by the scheduler only: as an argument of a
request it is refused as unknown."""


class Folded:
    """``tokens`` uint32 [n] of an answer, before those that are output. Logs that print it do not print an answer."""

    __slots__ = ("tokens",)

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"<{len(self.tokens)} tokens>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folded) and np.array_equal(self.tokens, other.tokens)

    __hash__ = None  # type: ignore[assignment]


def remember_folded(params: SamplingParams, folded: np.ndarray) -> None:
    """Note in ``params`` what was folded of its answer, if it has penalties that count it."""
    if params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0:
        params.extra_args = {**(params.extra_args or {}), FOLDED: Folded(folded)}


def _folded(params: SamplingParams | None) -> np.ndarray | None:
    found = (params.extra_args or {}).get(FOLDED) if params is not None else None
    return None if found is None else found.tokens


def _counts(folded: np.ndarray, vocabulary: int, device: torch.device) -> torch.Tensor:
    """int32 [vocabulary]: how often each token was said."""
    return async_tensor_h2d(np.bincount(folded, minlength=vocabulary).astype(np.int32), device)


class Output(list[int]):
    """The output tokens of a request, to vLLM a list as any other, and what it said before them."""

    def __init__(self, tokens: Sequence[int], folded: np.ndarray) -> None:
        super().__init__(tokens)
        self._folded = folded
        self._counted: torch.Tensor | None = None

    def counts(self, logits: torch.Tensor) -> torch.Tensor:
        """int32 [vocabulary] of ``logits`` [rows, vocabulary], where these are."""
        if self._counted is None:
            self._counted = _counts(self._folded, logits.shape[1], logits.device)
        return self._counted


def _count_folded(
    logits: torch.Tensor, metadata: Any, rows: Sequence[int], outputs: Sequence[Sequence[int]]
) -> torch.Tensor:
    """``logits`` [rows, vocabulary], in which vLLM has counted prompt and output, with what was folded, in place.

    rows     the request of each row of the logits; outputs: its output there.

    The same as if all had been counted at once (``vllm/model_executor/layers/utils.py: apply_penalties``): what is
    neither in the prompt nor in the output was not touched there, and everything else has had its repetition penalty.
    """
    vocabulary = logits.shape[1]
    for row, (request, output) in enumerate(zip(rows, outputs, strict=True)):
        said = metadata.output_token_ids[request]
        if not isinstance(said, Output):
            continue
        counts = said.counts(logits)
        in_output = torch.zeros(vocabulary + 1, dtype=torch.bool, device=logits.device)  # the last for padding
        in_output[async_tensor_h2d(list(output), logits.device, torch.int64)] = True
        known = in_output.clone()
        known[metadata.prompt_token_ids[request]] = True
        repeated = (counts > 0) & ~known[:vocabulary]
        penalty = torch.where(repeated, metadata.repetition_penalties[request], 1.0)
        values = logits[row]
        values = torch.where(values > 0, values / penalty, values * penalty)
        values = values - metadata.frequency_penalties[request] * counts
        logits[row] = values - metadata.presence_penalties[request] * ((counts > 0) & ~in_output[:vocabulary])
    return logits


def _wrap_input_batch_add_request(original: Any) -> Any:
    def add_request(self: Any, request: Any) -> Any:
        folded = _folded(request.sampling_params)
        if folded is not None:
            request.output_token_ids = Output(request.output_token_ids, folded)
        return original(self, request)

    return add_request


def _any_folded(metadata: Any) -> bool:
    return not metadata.no_penalties and any(isinstance(output, Output) for output in metadata.output_token_ids)


def _wrap_apply_penalties(original: Any) -> Any:
    def apply_penalties(logits: Any, sampling_metadata: Any, output_token_ids: Any) -> Any:
        logits = original(logits, sampling_metadata, output_token_ids)
        if not _any_folded(sampling_metadata):
            return logits
        return _count_folded(logits, sampling_metadata, range(len(output_token_ids)), output_token_ids)

    return apply_penalties


def _wrap_apply_penalties_to_drafts(original: Any) -> Any:
    def apply_penalties(
        logits: Any, sampling_metadata: Any, metadata: Any, repeat_indices: Any, output_token_ids: Any
    ) -> Any:
        logits = original(logits, sampling_metadata, metadata, repeat_indices, output_token_ids)
        if not _any_folded(sampling_metadata):
            return logits
        rows = [request for request, drafts in enumerate(metadata.num_draft_tokens) for _ in range(drafts)]
        return _count_folded(logits, sampling_metadata, rows, output_token_ids)

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
            counts += _counts(folded, len(counts), counts.device)
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
