"""The input-embedding space of a model, as far as a gist has to fit into it: where its middle is, and its scale."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EmbeddingSpace:
    """``mean``: float32 ``[d]`` over the vocabulary. ``norm``: the median norm of an embedding.

    The mean is the large direction that all embeddings share. A gist that keeps it is noise to the model, whatever its
    norm (quality.md), so that every GistNet starts from children without it.
    """

    mean: torch.Tensor
    norm: float

    @classmethod
    def of(cls, table: torch.Tensor) -> "EmbeddingSpace":
        """table: ``[V, d]``, what the model's layers are given for each token."""
        rows = table.detach().float()
        return cls(rows.mean(dim=0), float(rows.norm(dim=1).median()))

    @classmethod
    def unknown(cls, dim: int) -> "EmbeddingSpace":
        """To be overwritten: a net that is about to be given its weights."""
        return cls(torch.zeros(dim), 1.0)


def to_norm(vectors: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
    """``[n, d]`` scaled to one norm; zeros stay zeros."""
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12) * norm
