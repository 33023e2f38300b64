"""A real server for the tests, in a process group of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from engines import GPU_SHARE
from serving import end, free_port


@dataclass(frozen=True)
class Server:
    """``address`` has no slash at the end; ``log`` is what the server has written."""

    address: str
    log: Path


@contextmanager
def serve(model: Path, folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """``vllm serve MODEL --plugin megacontext OPTIONS`` as a user starts it; model name "m", store in ``folder``."""
    port = free_port()
    command = [
        *(str(Path(sys.executable).parent / "vllm"), "serve", str(model), "--plugin", "megacontext"),
        *("--served-model-name", "m", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--enforce-eager", "--additional-config.megacontext.store", str(folder / "store")),
        *(("--gpu-memory-utilization", GPU_SHARE) if torch.cuda.is_available() else ()),
        *options,
    ]
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **(environment or {})}
        )
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
        yield Server(address, log)
        assert server.poll() is None, "the server did not survive its tests"
    finally:
        end(server)
