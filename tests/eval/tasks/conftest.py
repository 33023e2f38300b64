"""The example text as filler: 350,000 tokens, whose documents are speeches."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler


@pytest.fixture(scope="session")
def tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.fixture(scope="session")
def chat(tokenizer: Any) -> ChatFormat:
    return ChatFormat(tokenizer)


@pytest.fixture(scope="session")
def filler(tokenizer: Any, text: str) -> Filler:
    speeches = re.split(r"(?m)^(?==== )", text)[1:]
    ids = tokenizer(speeches, add_special_tokens=False)["input_ids"]
    lengths = np.array([len(speech) for speech in ids])
    return Filler.from_tokens(np.concatenate(ids).astype(np.uint32), tokenizer, np.cumsum(lengths) - lengths)


@pytest.fixture(scope="session")
def is_aligned(filler: Filler) -> Callable[[np.ndarray], bool]:
    """Whether 32 tokens are an aligned block of the filler."""
    blocks = {block.tobytes() for block in filler.tokens.reshape(-1, 32)}
    return lambda tokens: tokens.tobytes() in blocks
