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
        n, t, _ = x.shape
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        q, k, v = (
            project(x).view(n, t, number, self.shape.head_dim).transpose(1, 2)
            for project, number in ((self.q_proj, heads), (self.k_proj, kv_heads), (self.v_proj, kv_heads))
        )
        if self.shape.head_norms:
            q, k = self.q_norm(q), self.k_norm(k)
        repeats = heads // kv_heads
        q, k = rotate(q, self.shape.rope_theta), rotate(k, self.shape.rope_theta)
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        mixed = scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(n, t, heads * self.shape.head_dim))


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


def rotate(x: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary positions 0, 1, ... (arXiv:2104.09864) on ``[n, heads, t, head_dim]``."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-torch.arange(half, dtype=torch.float32, device=x.device) / half)
    angles = torch.arange(x.shape[-2], dtype=torch.float32, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
