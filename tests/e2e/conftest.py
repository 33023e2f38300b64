"""Real engines for the tests. The two that several files use live for the session; idle they cost memory only."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from engines import GIST_SEED, SERVED_LIMIT, SERVED_WINDOW, Engine, start, stop
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


@pytest.fixture(scope="session")
def address(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server as a user starts it, model name "m"; several files ask it."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(str(Path(sys.executable).parent / "vllm"), "serve", str(model_dir), "--plugin", "megacontext"),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", "2048", "--max-num-seqs", "8", "--enforce-eager", "--enable-prompt-tokens-details"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "granite"),
        # Where whitespace may be anything, a small model may go on with it for ever.
        *("--structured-outputs-config.backend", "xgrammar"),
        *("--structured-outputs-config.disable_any_whitespace", "true"),
        *("--additional-config.megacontext.window", str(SERVED_WINDOW)),
        *("--additional-config.megacontext.history_limit", str(SERVED_LIMIT)),
        *("--additional-config.megacontext.store", str(folder / "store")),
    ]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            assert server.poll() is None, log.read_text(errors="replace")[-5000:]
            try:
                if httpx.get(f"{address}/health").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        yield address
        assert server.poll() is None, "the server did not survive its tests"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(server.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
