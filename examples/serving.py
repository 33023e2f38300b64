"""Start a real vLLM server and end it again with all that it started; for the demo and the benchmarks."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

CACHE = Path(os.environ.get("MEGACONTEXT_CACHE") or Path.home() / ".cache" / "megacontext")
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct"
TEXT = CACHE / "texts" / "state_of_the_union.txt"
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def gpus() -> list[str]:
    if not shutil.which("nvidia-smi"):
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]


def default_dtype() -> str:
    """``float32`` on a CPU that would have to emulate bfloat16, else ``auto``."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "auto"
    return "auto" if gpus() or "avx512_bf16" in flags or "amx" in flags else "float32"


@contextmanager
def server(
    model: Path, log: Path, arguments: Sequence[str], console: Console, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """``vllm serve MODEL ARGUMENTS`` on a free port until the end of the block. Yields its address.

    Everything it started is ended, also when the caller is interrupted. ``environment`` is added to this process's.
    """
    port = free_port()
    command = [
        *(str(BIN / "vllm"), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)),
        *arguments,
    ]
    console.print(f"[bold]$ {escape(' '.join(command))}[/bold]", soft_wrap=True)
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ, **(environment or {})}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=variables, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_up(process, address, log, console)
        yield address
    finally:
        end(process)


def wait_until_up(process: subprocess.Popen[bytes], address: str, log: Path, console: Console) -> None:
    started = time.monotonic()
    with console.status("") as status:
        while True:
            status.update(f"vLLM is starting … {time.monotonic() - started:.0f} s (log: {log})")
            if process.poll() is not None:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                raise SystemExit(f"The server ended with status {process.returncode}. The end of {log}:\n{tail}")
            try:
                if httpx.get(f"{address}/health", timeout=2).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.5)
    console.print(f"Server up after {time.monotonic() - started:.0f} s.")


def end(process: subprocess.Popen[bytes]) -> None:
    """End the server and all of its processes; the session it was started in finds those that outlive it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
