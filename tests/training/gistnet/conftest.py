"""Tiny random models of each family, and text that can be learned: the tests of training share them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel

VOCABULARY = 96
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")


class Tokenizer:
    """What FrozenModel asks of one."""

    bos_token_id = 0
    eos_token_id = 1

    def get_vocab(self) -> dict[str, int]:
        return {f"t{i}": i for i in range(VOCABULARY)}


def tiny(family: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    shared: dict[str, Any] = {"vocab_size": VOCABULARY, "attn_implementation": "sdpa"}
    if family == "gpt2":
        ids = {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2}
        config = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=2048, **ids, **shared)
        return GPT2LMHeadModel(config)
    shared |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
        # Strong enough that what stands before a token matters to an untrained model.
        "initializer_range": 0.2,
    }
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**shared))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**shared))
    return Qwen3ForCausalLM(Qwen3Config(head_dim=8, **shared))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they bring at this size, and other tests may be running."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_base() -> Callable[..., FrozenModel]:
    def make(family: str = "llama", seed: int = 0) -> FrozenModel:
        return FrozenModel(tiny(family, seed), Tokenizer(), f"tiny {family}")

    return make


@pytest.fixture(scope="session")
def documents() -> TokenStream:
    """Six documents of two sources, of 400 to 2,400 tokens; each has favourite tokens, so that its past matters."""
    rng = np.random.default_rng(3)
    sizes = [400, 800, 1200, 1600, 2000, 2400]
    parts = [rng.choice(rng.integers(2, VOCABULARY, 12), size) for size in sizes]
    starts = np.cumsum([0, *sizes[:-1]])
    return TokenStream(np.concatenate(parts).astype(np.uint32), starts, [f"s{i % 2}/{i}" for i in range(len(sizes))])
