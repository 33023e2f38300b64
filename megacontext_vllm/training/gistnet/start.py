"""The net that training starts with: sized for the base model, and where possible begun with its first layers."""

from typing import Any

import torch

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.learned import LearnedGistNet
from megacontext_vllm.nets.pooling import PoolingGistNet
from megacontext_vllm.nets.transformer import TransformerGistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.recipe import Recipe


def make_net(base: FrozenModel, recipe: Recipe) -> LearnedGistNet:
    """Seeded by the recipe; on the base model's device, float32. Raises ConfigError for more layers than there are."""
    torch.manual_seed(recipe.seed)
    if recipe.arch == "pooling":
        net: LearnedGistNet = PoolingGistNet(
            base.dim, recipe.heads, recipe.hidden, recipe.levels, recipe.scale, base.space()
        )
        return net.to(base.device)
    return _transformer(base, recipe).to(base.device)


def begin_with(net: LearnedGistNet, trained: LearnedGistNet) -> None:
    """Take over the weights of ``trained``. Raises ConfigError if they are of other sizes."""
    there = {"architecture": trained.architecture} | trained.sizes
    here = {"architecture": net.architecture} | net.sizes
    different = [f"{key} {there.get(key)} → {value}" for key, value in here.items() if there.get(key) != value]
    if different:
        raise ConfigError(f"The net to start with has other sizes ({', '.join(different)}): ask for its own.")
    net.load_state_dict(trained.state_dict())


def _transformer(base: FrozenModel, recipe: Recipe) -> TransformerGistNet:
    config: Any = base.model.config.get_text_config()
    layers = base.layers
    if layers is None or recipe.layers > len(layers):
        raise ConfigError(f"--layers {recipe.layers}: {base.name} has {len(layers or [])}; use at most as many.")
    states = [layer.state_dict() for layer in list(layers)[: recipe.layers]]
    if not _fits(states[0], config):
        # Not a layer that Layer can hold (GPT-2: LayerNorm, positions as embeddings): the same layers, from scratch.
        heads = config.num_attention_heads
        ff = -(-base.dim * 8 // 3 // 32) * 32
        return TransformerGistNet(
            base.dim,
            heads,
            heads,
            base.dim // heads,
            ff,
            recipe.layers,
            recipe.levels,
            scale=recipe.scale,
            space=base.space(),
        )
    attention = layers[0].self_attn
    net = TransformerGistNet(
        base.dim,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=attention.head_dim,
        ff=config.intermediate_size,
        layers=recipe.layers,
        levels=recipe.levels,
        rope_theta=float(config.rope_parameters["rope_theta"]),
        eps=config.rms_norm_eps,
        attention_bias="self_attn.q_proj.bias" in states[0],
        head_norms="self_attn.q_norm.weight" in states[0],
        scale=recipe.scale,
        space=base.space(),
    )
    net.start_from(states)
    return net


def _fits(state: dict[str, torch.Tensor], config: Any) -> bool:
    """Whether ``nets.layer.Layer`` computes what this layer computes: by its parameters and its activation."""
    projections = [f"self_attn.{name}_proj.weight" for name in "qkvo"]
    needed = {*projections, "input_layernorm.weight", "post_attention_layernorm.weight"}
    needed |= {f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    optional = {f"self_attn.{name}_proj.bias" for name in "qkv"} | {f"self_attn.{n}_norm.weight" for n in "qk"}
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    whole = needed <= state.keys() <= needed | optional
    return whole and theta is not None and getattr(config, "hidden_act", "") == "silu"
