"""The real tokenizer, and a focus with it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.focus.focus import Focus


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="session")
def focus(tokenizer: PreTrainedTokenizerBase) -> Focus:
    return Focus.of(tokenizer, MegaContextConfig())
