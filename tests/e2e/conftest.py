"""Real engines for the tests, one alive at a time where that can be helped: each holds a model and a KV cache."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from engines import Engine
from vllm import LLM


def stop(llm: LLM) -> None:
    llm.llm_engine.engine_core.shutdown()


@pytest.fixture(scope="module")
def start_engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """``start_engine(megacontext={...}, **engine_args)``; ``megacontext=None`` is stock vLLM."""
    running: list[LLM] = []

    def start(megacontext: dict[str, Any] | None, **arguments: Any) -> Engine:
        store = tmp_path_factory.mktemp("store")
        if megacontext is not None:
            arguments["additional_config"] = {"megacontext": {"store": str(store), **megacontext}}
        defaults = {
            "model": str(model_dir),
            "max_model_len": 1100,
            "enforce_eager": True,
            "dtype": "float32",
            "block_size": 32,
            "disable_log_stats": False,
        }
        llm = LLM(**{**defaults, **arguments})
        running.append(llm)
        return Engine(llm, store)

    yield start
    for llm in running:
        stop(llm)
