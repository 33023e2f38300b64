"""Models of a size that is served, for speed alone: their shapes with the default model's tokenizer, and no weights.

vLLM fills them with random numbers (``--load-format dummy``). What such a model says means nothing; how long it takes
does not depend on that.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_OF_THE_TOKENIZER = ("bos_token_id", "eos_token_id", "pad_token_id")
_COMMON: dict[str, Any] = {
    "dtype": "bfloat16",
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
}
SHAPES: dict[str, dict[str, Any]] = {
    # The config.json of meta-llama/Llama-3.1-8B, without its stretched positions.
    "llama-8b": _COMMON
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "vocab_size": 128_256,
    },
    # That of Qwen/Qwen2.5-7B.
    "qwen-7b": _COMMON
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "vocab_size": 152_064,
    },
}


def shaped(config: dict[str, Any], tokenizer: Path, folder: Path) -> Path:
    """``folder``, made into a model of ``config`` with the tokenizer of the model in ``tokenizer``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        shutil.copy(tokenizer / name, folder)
    known = json.loads((tokenizer / "config.json").read_text())
    whole = config | {token: known[token] for token in _OF_THE_TOKENIZER if token in known}
    (folder / "config.json").write_text(json.dumps(whole, indent=1) + "\n")
    return folder


def model_folder(name: str, tokenizer: Path) -> Path:
    """The folder ``name``, or one that is made now beside ``tokenizer`` for a name in ``SHAPES``.

    For argparse, whose ArgumentTypeError it raises.
    """
    if name in SHAPES:
        if not tokenizer.exists():
            raise argparse.ArgumentTypeError(f"{tokenizer} is missing, whose tokenizer {name} gets; run: make model")
        return shaped(SHAPES[name], tokenizer, tokenizer.parent / f"{name}-random")
    if not (Path(name) / "config.json").exists():
        raise argparse.ArgumentTypeError(f"{name} is no model's folder, and none of {', '.join(SHAPES)}")
    return Path(name)
