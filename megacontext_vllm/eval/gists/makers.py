"""What makes gists, trained or not, and the controls that a gist has to beat."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from megacontext_vllm.eval.gists.layouts import BLOCK
from megacontext_vllm.nets.gistnet import GistNet
from megacontext_vllm.nets.training_free import CentredMeanGists, KeywordGists, TrainingFreeGists

_BLOCKS_AT_ONCE = 2048
"""Nodes that a net makes in one call: their embeddings are 150 MB for the default model."""


class GistMaker(ABC):
    """Gists of whole nodes from the tokens under them.

    last_only  a control: only the last gist is shown, as if those before it were dropped.
    """

    name: str
    last_only = False

    @abstractmethod
    def gists(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        """int64 ``[n, 32**level]`` → float32 ``[n, d]``."""


class TrainingFree(GistMaker):
    """One of ``nets/training_free.py``, by name."""

    def __init__(self, name: str, maker: TrainingFreeGists) -> None:
        self.name = name
        self._maker = maker

    def gists(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        return self._maker.gists(tokens)


class MeanGists(GistMaker):
    """The plain mean of the embeddings, known to be poison: a measurement that does not show it is wrong."""

    name = "mean"

    def __init__(self, embedding: torch.Tensor) -> None:
        """embedding: float32 ``[V, d]``."""
        self._embedding = embedding

    def gists(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        return torch.nn.functional.embedding_bag(tokens, self._embedding, mode="mean")


class EveryNth(GistMaker):
    """A control: a token out of the middle of each node, so every 32nd token at LOD1."""

    name = "every 32nd token"

    def __init__(self, embedding: torch.Tensor) -> None:
        """embedding: float32 ``[V, d]``."""
        self._embedding = embedding

    def gists(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        return self._embedding[tokens[:, tokens.shape[1] // 2]]


class NetGists(GistMaker):
    """A GistNet's gists, made from the bottom up as they are served."""

    def __init__(self, name: str, net: GistNet, embedding: torch.Tensor) -> None:
        """embedding: float32 ``[V, d]``."""
        self.name = name
        self._net = net
        self._embedding = embedding

    @torch.inference_mode()
    def gists(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        device = next((some.device for some in self._net.parameters()), self._embedding.device)
        blocks = tokens.reshape(-1, BLOCK).split(_BLOCKS_AT_ONCE)
        rows = torch.cat([self._net(self._embedding[some].to(device), 1) for some in blocks])
        for above in range(2, level + 1):
            rows = torch.cat([self._net(some, above) for some in rows.unflatten(0, (-1, BLOCK)).split(_BLOCKS_AT_ONCE)])
        assert rows.shape[0] == tokens.shape[0], (rows.shape, tokens.shape)
        return rows.float().cpu()


class LastOnly(GistMaker):
    """A control: of a maker's gists only the last, the one nearest to the targets."""

    last_only = True

    def __init__(self, maker: GistMaker) -> None:
        self.name = f"{maker.name}, last gist only"
        self._maker = maker

    def gists(self, tokens: torch.Tensor, level: int) -> torch.Tensor:
        return self._maker.gists(tokens, level)


def standard_makers(
    embedding: torch.Tensor, counts: torch.Tensor, nets: Sequence[tuple[str, GistNet]] = ()
) -> list[GistMaker]:
    """What is measured: controls, what needs no training, and each net (with its name) beside its last gist only.

    embedding: float32 ``[V, d]``; counts: integers ``[V]``, how often each token stands in a corpus.
    """
    makers: list[GistMaker] = [
        EveryNth(embedding),
        MeanGists(embedding),
        TrainingFree("centred mean", CentredMeanGists(embedding)),
        TrainingFree("keyword", KeywordGists(embedding, counts)),
    ]
    if not nets:
        makers.append(LastOnly(makers[-1]))
    for name, net in nets:
        maker = NetGists(name, net, embedding)
        makers += [maker, LastOnly(maker)]
    return makers
