"""Tensor parallelism and compiled graphs, with a tiny random model: the gists stay exact there too."""

import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import GIST_SEED, Engine, greedy
from reference import Reference
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from vllm.config import CompilationMode

STEPS = 16
MEGACONTEXT = {"gist_net": f"random:{GIST_SEED}", "window": 512}


@pytest.fixture(scope="module")
def tiny(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random Llama layers behind the default model's tokenizer; weights large enough for clear decisions."""
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def history(model_dir: Path, text: str) -> list[int]:
    return list(AutoTokenizer.from_pretrained(model_dir).encode(text[:200_000])[:35_000])


def check(engine: Engine, tiny: Path, history: list[int]) -> None:
    reference = Reference(tiny, GIST_SEED)
    for tokens in (history, history[1000:9000]):
        (output,) = engine.ask([tokens], greedy(STEPS))
        embeddings, ids = engine.shown(reference, tokens, output)
        assert list(output.outputs[0].token_ids) == reference.greedy(embeddings, ids, STEPS)


def test_tensor_parallel(
    start_engine: Callable[..., Engine], tiny: Path, history: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = start_engine(MEGACONTEXT, model=str(tiny), tensor_parallel_size=2)
    check(engine, tiny, history)


@pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs g++ and Python's headers",
)
def test_compiled(start_engine: Callable[..., Engine], tiny: Path, history: list[int]) -> None:
    engine = start_engine(MEGACONTEXT, model=str(tiny), enforce_eager=False)
    assert engine.llm.llm_engine.vllm_config.compilation_config.mode != CompilationMode.NONE
    check(engine, tiny, history)
