"""One pre-norm decoder layer, the shape that Llama, Qwen2 and Qwen3 share, so that theirs can be a start.

Own code rather than transformers' modules: serving has no transformers model at hand, and the parameter names below are
theirs, so that a layer's weights load as they are. RMSNorm, rotary positions in the half-split layout, grouped key and
value heads, SwiGLU (arXiv:2302.13971; biases: arXiv:2407.10671; norms of queries and keys: arXiv:2505.09388).
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention, silu


@dataclass(frozen=True)
class LayerShape:
    """``attention_bias``: of queries, keys and values (Qwen2). ``head_norms``: of queries and keys (Qwen3)."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    rope_theta: float = 10_000.0
    eps: float = 1e-6
    attention_bias: bool = False
    head_norms: bool = False


class Attention(torch.nn.Module):
    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = torch.nn.Linear(shape.width, q, bias=shape.attention_bias)
        self.k_proj = torch.nn.Linear(shape.width, kv, bias=shape.attention_bias)
        self.v_proj = torch.nn.Linear(shape.width, kv, bias=shape.attention_bias)
        self.o_proj = torch.nn.Linear(q, shape.width, bias=False)
        if shape.head_norms:
            self.q_norm = torch.nn.RMSNorm(shape.head_dim, eps=shape.eps)
            self.k_norm = torch.nn.RMSNorm(shape.head_dim, eps=shape.eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, t, width]`` -> the same; causal."""
        keys, values = self._keys_and_values(x)
        return self._mixed(scaled_dot_product_attention(self._queries(x, 0), keys, values, is_causal=True))

    def last(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, t, width]`` -> ``[n, 1, width]``: what ``forward`` has in its last place, which sees all of them."""
        keys, values = self._keys_and_values(x)
        queries = self._queries(x[:, -1:], x.shape[1] - 1)
        return self._mixed(scaled_dot_product_attention(queries, keys, values))

    def _queries(self, x: torch.Tensor, first: int) -> torch.Tensor:
        q = self._by_head(self.q_proj(x), self.shape.heads)
        return rotate(self.q_norm(q) if self.shape.head_norms else q, self.shape.rope_theta, first)

    def _keys_and_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = (self._by_head(project(x), self.shape.kv_heads) for project in (self.k_proj, self.v_proj))
        k = rotate(self.k_norm(k) if self.shape.head_norms else k, self.shape.rope_theta)
        repeats = self.shape.heads // self.shape.kv_heads
        return k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1).to(k.dtype)

    def _by_head(self, projected: torch.Tensor, heads: int) -> torch.Tensor:
        return projected.unflatten(-1, (heads, self.shape.head_dim)).transpose(1, 2)

    def _mixed(self, mixed: torch.Tensor) -> torch.Tensor:
        """``[n, heads, t, head_dim]`` -> ``[n, t, width]``."""
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(torch.nn.Module):
    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(shape.width, shape.ff, bias=False)
        self.up_proj = torch.nn.Linear(shape.width, shape.ff, bias=False)
        self.down_proj = torch.nn.Linear(shape.ff, shape.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(torch.nn.Module):
    """``[n, t, width]`` -> the same."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self.input_layernorm = torch.nn.RMSNorm(shape.width, eps=shape.eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = torch.nn.RMSNorm(shape.width, eps=shape.eps)
        self.mlp = FeedForward(shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))

    def last(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, t, width]`` -> ``[n, width]``: what ``forward`` has in its last place, at a fraction of its cost."""
        x = x[:, -1:] + self.self_attn.last(self.input_layernorm(x))
        return (x + self.mlp(self.post_attention_layernorm(x)))[:, 0]


def rotate(x: torch.Tensor, theta: float, first: int = 0) -> torch.Tensor:
    """Rotary positions ``first``, ``first`` + 1, ... (arXiv:2104.09864) on ``[n, heads, t, head_dim]``."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    positions = torch.arange(first, first + x.shape[-2], dtype=torch.float32, device=x.device)
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
