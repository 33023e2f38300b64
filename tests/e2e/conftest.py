"""Real engines for the tests. The two that several files use live for the session; idle they cost memory only."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from engines import GIST_SEED, Engine, start, stop
from reference import Reference


@pytest.fixture(scope="session")
def _session_engines(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    yield from _starter(model_dir, tmp_path_factory)


@pytest.fixture(scope="module")
def start_engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """``start_engine(megacontext={...}, **engine_args)`` for the tests of one file; ``None`` is stock vLLM."""
    yield from _starter(model_dir, tmp_path_factory)


def _starter(model_dir: Path, folders: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    running: list[Engine] = []

    def start_one(megacontext: dict[str, Any] | None, **arguments: Any) -> Engine:
        engine = start(model_dir, folders.mktemp("store"), megacontext, **arguments)
        running.append(engine)
        return engine

    yield start_one
    for engine in running:
        stop(engine)


@pytest.fixture(scope="session")
def engine(_session_engines: Callable[..., Engine]) -> Engine:
    """Gists of an untrained net are shown; whole prefills; small ingest steps so that tests can catch it ingesting."""
    return _session_engines(
        {"gist_net": f"random:{GIST_SEED}", "window": 512, "gist_tokens_per_step": 1024}, max_num_batched_tokens=2048
    )


@pytest.fixture(scope="session")
def reference(model_dir: Path) -> Reference:
    return Reference(model_dir, GIST_SEED)


@pytest.fixture(scope="session")
def tokens(engine: Engine, text: str) -> list[int]:
    """The first 250,000 tokens or so of the text."""
    return list(engine.llm.get_tokenizer().encode(text[:1_200_000]))
