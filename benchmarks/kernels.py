"""How near each kernel comes to the speed of the memory it works on.

    .venv/bin/python benchmarks/kernels.py                 # the GPU if there is one, else the host's own paths
    .venv/bin/python benchmarks/kernels.py --quick         # see whether it works; its numbers mean little
    .venv/bin/python benchmarks/kernels.py --cases gist_reduce lens_scan --json results.json

Each case moves several times what the caches hold, of random data; each byte that has to be read or written counts
once. What is told is bytes per second as a share of a plain copy of one buffer to another, measured in the same run on
the same device, for the kernel and for what a user could write instead: the operation in torch, the same compiled, an
index_select or NumPy. The alternatives take turns, medians count, and every result is compared with torch's before it
is timed: wrong results have no speed.

Without a GPU the functions under test are the host's paths, which the product uses there; the GPU is then not measured.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from kernels_cases import CASES, GOALS, Case
from rich.console import Console
from rich.table import Table
from workload import machine

Run = Callable[[], object]

LAUNCHING = 1_000_000
"""Cycles that a GPU waits before the clock runs, about half a millisecond: longer than Python takes for a launch."""


@dataclass(frozen=True)
class Measured:
    """Seconds are the median of one call; ``of_copy``: bytes per second in units of the copy's."""

    case: str
    size: str
    contender: str
    seconds: float
    gigabytes_per_second: float
    of_copy: float
    million_tokens_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=sorted(CASES), default=sorted(CASES), help="default: all")
    parser.add_argument("--quick", action="store_true", help="small buffers, few repeats")
    parser.add_argument("--repeat", type=int, metavar="N", help="calls of each contender (default: 30, on a CPU 9)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    repeat = options.repeat or (3 if options.quick else 30 if device == "cuda" else 9)
    mebibytes = 8 if options.quick else 1024 if device == "cuda" else 128
    console = Console()
    name = (
        torch.cuda.get_device_name() if device == "cuda" else f"{machine()['cpu']}, {torch.get_num_threads()} threads"
    )
    console.print(f"{name} · torch {torch.__version__} · {mebibytes} MiB a case · {time.strftime('%Y-%m-%d')}")
    measured: list[Measured] = []
    for chosen in options.cases:
        for case in CASES[chosen](device, mebibytes << 20):
            measured += race(case, device, repeat)
    console.print(table(measured))
    for case, goal in GOALS.items():
        found = [m.of_copy for m in measured if m.case == case and m.contender == "kernel"]
        if found and device == "cuda":
            verdict = "reached" if min(found) >= goal else "missed"
            console.print(f"{case}: {min(found):.2f} to {max(found):.2f} of the copy, goal {goal:.2f}: {verdict}")
    if device == "cpu":
        console.print("The GPU was not measured: there is none here.")
    if options.json:
        about = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
        rows = [asdict(row) for row in measured]
        options.json.write_text(json.dumps({"about": about, "mebibytes": mebibytes, "rows": rows}, indent=1) + "\n")


def race(case: Case, device: str, repeat: int) -> list[Measured]:
    """All contenders in turns, and the copy that they are held against."""
    expected = case.contenders[case.reference]()
    for name, run in case.contenders.items():
        case.check(name, run(), expected)
    half = torch.randn(case.bytes // 8, device=device)
    copied = torch.empty_like(half)
    runs: dict[str, Run] = {"copy": lambda: copied.copy_(half), **case.contenders}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            spent = timed(run, device)
            if turn:  # the first warms up: caches, allocations
                seconds[name].append(spent)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    copy_speed = 2 * half.numel() * half.element_size() / medians["copy"]
    return [
        Measured(
            case.name,
            case.size,
            name,
            medians[name],
            case.bytes / medians[name] / 1e9,
            case.bytes / medians[name] / copy_speed,
            case.tokens / medians[name] / 1e6,
        )
        for name in case.contenders
    ]


def timed(run: Run, device: str) -> float:
    """Seconds of one call; on a GPU by its own clock."""
    if device == "cpu":
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    torch.cuda._sleep(LAUNCHING)  # the device begins when all is queued: what Python takes for that is not measured
    begun.record()
    run()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1e3


def table(measured: list[Measured]) -> Table:
    shown = Table("case", "size", "contender", "ms", "GB/s", "of copy", "M tokens/s")
    for m in measured:
        speed = (f"{m.seconds * 1e3:.2f}", f"{m.gigabytes_per_second:.1f}", f"{m.of_copy:.2f}")
        tokens = f"{m.million_tokens_per_second:.2f}" if m.million_tokens_per_second else ""
        shown.add_row(m.case, m.size.replace("torch.", ""), m.contender, *speed, tokens)
    return shown


if __name__ == "__main__":
    main()
