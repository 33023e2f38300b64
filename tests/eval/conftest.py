"""What several folders of evaluation tests share: the real tokenizer and text, and a model that is not trained."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megacontext_vllm.eval.methods.base import Tools
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler


@pytest.fixture(scope="session")
def chat(model_dir: Path) -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(model_dir))


@pytest.fixture(scope="session")
def filler(chat: ChatFormat, text: str) -> Filler:
    """Some 360,000 tokens of real text, as one document."""
    return Filler.from_tokens(chat.encode(text), chat.tokenizer)


@pytest.fixture(scope="session")
def tools(chat: ChatFormat, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Without embeddings."""
    return Tools(chat, chat.encode("\n[...]\n").tolist(), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of two layers, random weights, d = 32 and 2,048 positions; the real tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=len(tokenizer), num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.5, **shape
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
