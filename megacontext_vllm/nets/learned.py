"""What GistNets with trained weights share: how they start, what level a node is at, a fingerprint of the weights."""

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from megacontext_vllm.nets.embedding_space import EmbeddingSpace, to_norm
from megacontext_vllm.nets.gistnet import BLOCK, GistNet

STORED = torch.bfloat16


class LearnedGistNet(GistNet):
    """A gist is the centred mean of its children plus a learned correction that starts at zero, at one norm.

    Subclasses take ``dim``, ``levels``, ``scale``, their own sizes and an ``EmbeddingSpace``, and put what rebuilds
    them into ``sizes``. ``levels``: how many levels have parameters of their own; those above share the last one's.
    ``scale``: the norm of a gist in units of a token's. A gist says more than a token does; louder than one, it is
    still heard by the layers that come late (docs/gistnet.md has what that is worth).
    """

    architecture: ClassVar[str]
    sizes: dict[str, Any]
    trained = False

    def __init__(self, dim: int, levels: int, scale: float, space: EmbeddingSpace) -> None:
        super().__init__()
        assert levels >= 1 and scale > 0 and space.mean.shape == (dim,), (levels, scale, space.mean.shape)
        self.dim, self.levels, self.scale = dim, levels, scale
        self.register_buffer("mean", space.mean.detach().float().cpu().clone())
        self.register_buffer("norm", torch.tensor(space.norm, dtype=torch.float32))
        self._sealed: bytes | None = None

    @property
    def fingerprint(self) -> bytes:  # type: ignore[override]
        """Over the weights as they would be stored now; remembered once the net is sealed."""
        return self._sealed or weights_fingerprint(self.architecture, self.sizes, stored_tensors(self))

    def seal(self) -> None:
        """The weights are final: from here on this is a trained net, and its fingerprint costs nothing."""
        self.trained = True
        self._sealed = self.fingerprint

    def forward(self, children: torch.Tensor, level: int) -> torch.Tensor:
        """``[n, 32, d]`` children of ``n`` nodes of ``level`` -> float32 ``[n, d]`` gists."""
        assert children.dim() == 3 and children.shape[1:] == (BLOCK, self.dim), children.shape
        assert level >= 1, level
        # Whatever the level, the net sees children of a token's norm.
        children = children.float() if level == 1 else children.float() / self.scale
        base, correction = self._parts(children, min(level, self.levels) - 1, self._middle(level))
        # Rounded products in the correction are fine under autocast; a rounded sum would not be.
        return to_norm(to_norm(base.float(), self.norm) + correction.float(), self.norm * self.scale)

    def _middle(self, level: int) -> torch.Tensor:
        """What is shared by all children, ``[d]``: gists have none of it, since their own children were centred."""
        return self.mean if level == 1 else torch.zeros_like(self.mean)

    @abstractmethod
    def _parts(self, children: torch.Tensor, level: int, middle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The centred mean and the correction, ``[n, d]`` each; ``level`` counts from 0."""


def stored_tensors(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters in bfloat16, buffers in float32, on the host: what a checkpoint holds."""
    parameters = {name: tensor.detach().to("cpu", STORED) for name, tensor in net.named_parameters()}
    buffers = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in net.named_buffers()}
    return {name: tensor.contiguous() for name, tensor in (parameters | buffers).items()}


def weights_fingerprint(architecture: str, sizes: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> bytes:
    """16 bytes over all that decides what gists a net makes."""
    digest = hashlib.blake2b(json.dumps([architecture, sizes], sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
