"""Gists for the methods that show them, made on the spot."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.methods.base import Tools
from megacontext_vllm.eval.sample import Span

if TYPE_CHECKING:
    import torch


def embedding_of(tools: Tools, method: str) -> "torch.Tensor":
    """The reader's embeddings, float32 ``[V, d]``; raises EvaluationError if they are not at hand."""
    import torch  # here, so that methods can be listed without it

    if tools.embedding is None:
        raise EvaluationError(
            f"method '{method}' shows gists, for which it needs the model's embeddings: use the transformers reader"
        )
    return torch.from_numpy(np.ascontiguousarray(tools.embedding, dtype=np.float32))


def gist_vectors(
    gists: "Callable[[torch.Tensor], torch.Tensor]", tokens: NDArray[np.uint32], spans: list[Span]
) -> list[NDArray[np.float32]]:
    """A gist, float32 ``[d]``, for each span of ``tokens``, uint32 ``[N]``; spans of one length go together.

    gists: of nodes of one level, int64 ``[n, 32**level]`` -> float32 ``[n, d]``.
    """
    import torch

    vectors: dict[Span, NDArray[np.float32]] = {}
    for size in sorted({stop - start for start, stop in spans}):
        chosen = [(start, stop) for start, stop in spans if stop - start == size]
        under = np.stack([tokens[start:stop] for start, stop in chosen]).astype(np.int64)
        vectors.update(zip(chosen, gists(torch.from_numpy(under)).numpy(), strict=True))
    return [vectors[span] for span in spans]
