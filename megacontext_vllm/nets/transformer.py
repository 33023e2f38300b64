"""TransformerGistNet: a few layers read the block, and a learned query that stands last says what was in it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import ClassVar

import torch

from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.layer import Layer, LayerShape
from megacontext_vllm.nets.learned import LearnedGistNet


class TransformerGistNet(LearnedGistNet):
    """Children, then level embedding + query -> layers -> RMSNorm of the query's place -> Linear that starts at zero.

    About 90 times the arithmetic of the pooling net per token; ``start_from`` gives it the base model's first layers.
    """

    architecture: ClassVar[str] = "transformer"

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        ff: int,
        layers: int = 4,
        levels: int = 2,
        rope_theta: float = 10_000.0,
        eps: float = 1e-6,
        attention_bias: bool = False,
        head_norms: bool = False,
        scale: float = 1.0,
        space: EmbeddingSpace | None = None,
    ) -> None:
        super().__init__(dim, levels, scale, space or EmbeddingSpace.unknown(dim))
        shape = LayerShape(dim, heads, kv_heads, head_dim, ff, rope_theta, eps, attention_bias, head_norms)
        own = {"dim": dim, "layers": layers, "levels": levels, "scale": scale}
        self.sizes = own | {name: value for name, value in asdict(shape).items() if name != "width"}
        self.query = torch.nn.Parameter(torch.randn(dim) * (self.norm / dim**0.5))
        self.level = torch.nn.Parameter(torch.zeros(levels, dim))
        self.layers = torch.nn.ModuleList(Layer(shape) for _ in range(layers))
        self.final_norm = torch.nn.RMSNorm(dim, eps=eps)
        self.project = torch.nn.Linear(dim, dim, bias=False)
        torch.nn.init.zeros_(self.project.weight)

    @torch.no_grad()
    def start_from(self, layers: Sequence[Mapping[str, torch.Tensor]]) -> None:
        """Copy a base model's first layers: their state, by the names of Llama and Qwen. Nothing may be left over."""
        assert len(layers) == len(self.layers), (len(layers), len(self.layers))
        for layer, state in zip(self.layers, layers, strict=True):
            layer.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=True)

    def copied_parameters(self) -> list[torch.nn.Parameter]:
        """Those that may have come from a base model, and want a smaller learning rate."""
        return list(self.layers.parameters())

    def _parts(self, children: torch.Tensor, level: int, middle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # The copied layers know embeddings as they are, so they are not centred; gists of gists get the mean back.
        x = children + (self.mean - middle)
        query = (self.query + self.level[level]).expand(len(x), 1, -1)
        x = torch.cat([x, query], dim=1)
        *lower, top = self.layers
        for layer in lower:
            x = layer(x)
        return children.mean(dim=1) - middle, self.project(self.final_norm(top.last(x))) * self.norm


SHAPE_NAMES = tuple(field.name for field in fields(LayerShape) if field.name != "width")
