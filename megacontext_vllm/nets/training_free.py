"""Gists that need no training: what a trained GistNet has to beat.

Both stay in the frozen model's input-embedding space, at its scale. Embeddings of a language model share a large common
direction (Mu & Viswanath 2018, arXiv:1702.01417), which a mean keeps while what tells texts apart averages out: plain
means are noise to the model, whatever their norm, and centred ones are not (quality.md).
"""

from abc import ABC, abstractmethod

import torch

from megacontext_vllm.nets.gistnet import BLOCK

_TOKENS_AT_ONCE = 1 << 18


class TrainingFreeGists(ABC):
    """Makes gists of token ids, a whole node at once: the same for every level."""

    def gists(self, tokens: torch.Tensor) -> torch.Tensor:
        """Gists of ``n`` nodes of one level: integers ``[n, 32**level]`` -> float32 ``[n, d]``."""
        assert tokens.dim() == 2 and tokens.shape[1] % BLOCK == 0 < tokens.shape[1], tokens.shape
        ids = tokens.long()
        parts = [self._gists(part) for part in ids.split(max(1, _TOKENS_AT_ONCE // ids.shape[1]))]
        return torch.cat(parts) if parts else self._gists(ids)

    @abstractmethod
    def _gists(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 ``[n, tokens]`` -> float32 ``[n, d]``."""


class CentredMeanGists(TrainingFreeGists):
    """The mean of the embeddings under the node minus the mean of all, at the median norm of an embedding."""

    def __init__(self, embedding: torch.Tensor) -> None:
        """embedding: ``[V, d]``, the model's input embeddings."""
        self._embedding = embedding.float()
        self._mean = self._embedding.mean(dim=0)
        self._norm = self._embedding.norm(dim=1).median()

    def _gists(self, ids: torch.Tensor) -> torch.Tensor:
        # An embedding bag adds rows up as it reads them; a gather of a million tokens would be gigabytes. By blocks:
        # a long float32 sum loses just what is left when the common mean is taken away.
        blocks = torch.nn.functional.embedding_bag(ids.reshape(-1, BLOCK), self._embedding, mode="mean") - self._mean
        centred = blocks.unflatten(0, (len(ids), ids.shape[1] // BLOCK)).mean(dim=1)
        return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12) * self._norm


class KeywordGists(TrainingFreeGists):
    """The embedding of the most informative token under the node, i.e. the rarest; of equally rare ones the first."""

    def __init__(self, embedding: torch.Tensor, counts: torch.Tensor) -> None:
        """embedding: ``[V, d]``; counts: integers ``[V]``, how often each token stands in the history or a corpus."""
        assert counts.shape == embedding.shape[:1], (counts.shape, embedding.shape)
        self._embedding = embedding.float()
        self._counts = counts.long()

    def _gists(self, ids: torch.Tensor) -> torch.Tensor:
        # The place takes part in the comparison, since which of equal minima argmin gives is not promised.
        size = ids.shape[1]
        rank = self._counts[ids] * size + torch.arange(size, device=ids.device)
        return self._embedding[ids.gather(1, rank.argmin(dim=1, keepdim=True))[:, 0]]
