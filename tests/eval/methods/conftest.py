"""The real tokenizer and text, a small random embedding, and prompts over any slice of the text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.eval.methods.base import Tools
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.sample import History, Layout, Sample
from megacontext_vllm.nets.card import Card
from megacontext_vllm.nets.checkpoints import save
from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.model_fingerprint import table_fingerprint
from megacontext_vllm.nets.pooling import PoolingGistNet

GAP = "\n[...]\n"
QUESTION = "What is the secret number of Mira Oldenburg?"
CANDIDATES = (" 48213", " 1", " 2", " 3")


@pytest.fixture(scope="session")
def chat(model_dir: Path) -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(model_dir))


@pytest.fixture(scope="session")
def ids(chat: ChatFormat, text: str) -> np.ndarray:
    """uint32, some 50,000 tokens of real text."""
    return chat.encode(text[:250_000])


@pytest.fixture(scope="session")
def embedding(chat: ChatFormat) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(len(chat.tokenizer), 8)).astype(np.float32)


@pytest.fixture(scope="session")
def net(chat: ChatFormat, embedding: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a GistNet for the embedding, of random weights."""
    torch.manual_seed(0)
    net = PoolingGistNet(embedding.shape[1], 2, 8, 2, space=EmbeddingSpace.of(torch.from_numpy(embedding)))
    torch.nn.init.normal_(net.project.weight)
    fingerprint = table_fingerprint(chat.tokenizer, torch.from_numpy(embedding))
    folder = tmp_path_factory.mktemp("gistnet")
    save(net, folder, Card(net.architecture, net.sizes, net.dim, "random", fingerprint.hex()))
    return folder


@pytest.fixture(scope="session")
def tools(chat: ChatFormat, embedding: np.ndarray, net: Path, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    settings = MegaContextConfig(gist_net=str(net))
    cache = tmp_path_factory.mktemp("cache")
    return Tools(chat, chat.encode(GAP).tolist(), cache, embedding, longest=4096, settings=settings)


@pytest.fixture(scope="session")
def prompt_of(chat: ChatFormat) -> Callable[..., Prompt]:
    """(history, layout, question) -> the prompt; only the first of a layout and question goes through the template."""
    made: dict[tuple[Layout, str], Prompt] = {}

    def prompt(history: np.ndarray, layout: Layout = Layout.DOCUMENT, question: str = QUESTION) -> Prompt:
        if (layout, question) not in made:
            some = History("h", np.arange(1000, 1400, dtype=np.uint32), layout)
            said: tuple[tuple[str, str], ...] = ()
            if layout is Layout.FOLLOW_UP:
                said = ("user", "Who was it?"), ("assistant", "It was Mira.")
            sample = Sample("s", "t", some, question, "It is", " 48213", CANDIDATES, ((0, 1),), said=said)
            made[layout, question] = chat.prompt(sample)
        return replace(made[layout, question], history=history)

    return prompt
