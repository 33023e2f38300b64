"""PoolingGistNet: learned queries pool the children, and a small network makes one vector of what they found."""

from typing import ClassVar

import torch

from megacontext_vllm.kernels.gist_reduce import gist_reduce
from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.gistnet import BLOCK
from megacontext_vllm.nets.learned import LearnedGistNet


class PoolingGistNet(LearnedGistNet):
    """The tokens are touched once, by ``gist_reduce``; everything else is per gist.

    ``heads`` queries with a bias for each place in the block -> weighted sums ``[n, H, d]``, centred -> RMSNorm ->
    Linear(H·d, hidden) + level embedding -> GELU -> Linear(hidden, d), which starts at zero.
    """

    architecture: ClassVar[str] = "pooling"

    def __init__(
        self,
        dim: int,
        heads: int = 8,
        hidden: int = 1024,
        levels: int = 2,
        scale: float = 1.0,
        space: EmbeddingSpace | None = None,
    ) -> None:
        super().__init__(dim, levels, scale, space or EmbeddingSpace.unknown(dim))
        self.sizes = {"dim": dim, "heads": heads, "hidden": hidden, "levels": levels, "scale": scale}
        # All levels start alike: what is learned of one is a beginning for the next.
        self.queries = torch.nn.Parameter(torch.randn(heads, dim).expand(levels, -1, -1).clone())
        self.bias = torch.nn.Parameter(_bumps(heads).expand(levels, -1, -1).clone())
        self.level = torch.nn.Parameter(torch.zeros(levels, hidden))
        self.pooled_norm = torch.nn.RMSNorm(heads * dim, eps=1e-6)
        self.widen = torch.nn.Linear(heads * dim, hidden)
        self.project = torch.nn.Linear(hidden, dim, bias=False)
        torch.nn.init.zeros_(self.project.weight)

    def _parts(self, children: torch.Tensor, level: int, middle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # A further query of zeros gives the mean in the same pass. Queries are stored for children of unit norm.
        queries = torch.nn.functional.pad(self.queries[level] / self.norm, (0, 0, 0, 1))
        bias = torch.nn.functional.pad(self.bias[level], (0, 0, 0, 1))
        pooled = gist_reduce(children, queries, bias) - middle
        found = self.pooled_norm(pooled[:, :-1].flatten(1) / self.norm)
        hidden = torch.nn.functional.gelu(self.widen(found) + self.level[level], approximate="tanh")
        return pooled[:, -1], self.project(hidden) * self.norm


def _bumps(heads: int) -> torch.Tensor:
    """``[H, 32]``: each query begins by looking at its own part of the block, or order would be lost at first."""
    places = torch.arange(BLOCK, dtype=torch.float32)
    middles = (torch.arange(heads, dtype=torch.float32) + 0.5) * (BLOCK / heads)
    return -0.5 * ((places - middles[:, None]) / (BLOCK / heads)).square()
