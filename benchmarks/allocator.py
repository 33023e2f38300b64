"""What a plan costs: the Focus Allocator, from the utilities of a history's blocks to the checked Working Context.

    .venv/bin/python benchmarks/allocator.py
    .venv/bin/python benchmarks/allocator.py --tokens 1000000 --windows 1024 --json plans.jsonl
    .venv/bin/python benchmarks/allocator.py --quick        # see whether it works; its numbers mean little

Spans are hidden or shown as gists, over utilities of five kinds:
  sparse   a few thousand blocks above 0, each with neighbours that inherit from it: what the lenses make of a question
  uniform  every block something else in [0, 1)
  equal    every block 0.5: nothing but ties
  zero     no lens found anything; recency decides
  heavy    a Pareto tail: a few blocks are worth thousands of times the others

Beside each stands, in the same run, what numpy takes to copy as many random numbers and find where the best of them end
(np.partition; with the utilities themselves it takes 20 times as long where most are equal and a few are larger).
Contenders take turns, and what counts is the median. The goal is 10 ms for a million tokens, 100 ms for more.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from tree_data import medians, race
from workload import machine, progress

from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.tree.nodes import BLOCK

Utilities = npt.NDArray[np.float32]

_PLACES = 1500  # of "sparse"; each has a block on either side
_GAP = 5  # tokens of the marker of a hidden span


def sparse(blocks: int, rng: np.random.Generator) -> Utilities:
    utility = np.zeros(blocks, dtype=np.float32)
    places = rng.integers(1, blocks - 1, min(_PLACES, blocks // 20))
    worth = rng.random(len(places), dtype=np.float32)
    for step, share in ((-1, 0.95), (1, 0.95), (0, 1.0)):
        np.maximum.at(utility, places + step, np.float32(share) * worth)
    return utility


KINDS: dict[str, Callable[[int, np.random.Generator], Utilities]] = {
    "sparse": sparse,
    "uniform": lambda blocks, rng: rng.random(blocks, dtype=np.float32),
    "equal": lambda blocks, rng: np.full(blocks, 0.5, dtype=np.float32),
    "zero": lambda blocks, rng: np.zeros(blocks, dtype=np.float32),
    "heavy": lambda blocks, rng: rng.pareto(1.0, blocks).astype(np.float32),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lengths = [1_000_000, 10_000_000, 100_000_000]
    parser.add_argument("--tokens", type=int, nargs="+", default=lengths, help="of a history (default: %(default)s)")
    parser.add_argument("--windows", type=int, nargs="+", default=[1024, 8192], help="(default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of utilities (default: all)")
    parser.add_argument("--repeat", type=int, default=7, help="measurements of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measurement there, one JSON line a case")
    parser.add_argument("--quick", action="store_true", help="see whether it works: a million tokens, once")
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.repeat = options.tokens[:1], 1
    if min(options.tokens) < 40 * max(options.windows) or min(options.windows) < 512 or options.repeat < 1:
        parser.error("--windows of 512 at least, --tokens 40 times as many as that, --repeat 1 at least")
    return options


def goal(tokens: int) -> float:
    """Milliseconds."""
    return 10.0 if tokens <= 1_000_000 else 100.0


def measure(tokens: int, window: int, kind: str, repeat: int) -> dict[str, Any]:
    utility = KINDS[kind](tokens // BLOCK, np.random.default_rng(0))
    numbers = np.random.default_rng(1).random(tokens // BLOCK, dtype=np.float32)
    count = max(1, window // BLOCK)

    def plan(gists: bool) -> float:
        pinned = window // 16
        started = time.perf_counter()
        made = allocate(tokens, window, utility, head=pinned, tail=pinned, gists=gists, gap_cost=0 if gists else _GAP)
        seconds = time.perf_counter() - started
        if window - made.cost >= 8 * BLOCK:
            raise SystemExit(f"nothing is reported: {made.cost} of {window} entries are used")
        return seconds

    def floor() -> float:
        started = time.perf_counter()
        np.partition(numbers.copy(), len(numbers) - count)
        return time.perf_counter() - started

    contenders = {"hidden": lambda: plan(False), "gists": lambda: plan(True), "floor": floor}
    for contender in contenders.values():
        contender()  # what is paid once in a process is nobody's
    return {"tokens": tokens, "window": window, "utility": kind, "seconds": race(contenders, repeat)}


def show(cases: list[dict[str, Any]]) -> None:
    table = Table("tokens", "utilities", "window", "hidden", "gists", "numpy", "hidden / it", "gists / it", "goal")
    table.caption = "milliseconds, medians"
    previous = 0
    for case in cases:
        if previous and case["tokens"] != previous:
            table.add_section()
        previous = case["tokens"]
        found = {name: 1000 * value for name, value in medians(case["seconds"]).items()}
        worst, limit = max(found["hidden"], found["gists"]), goal(case["tokens"])
        table.add_row(
            f"{case['tokens']:,}",
            case["utility"],
            f"{case['window']:,}",
            *(f"{found[name]:.1f}" for name in ("hidden", "gists", "floor")),
            *(f"{found[name] / found['floor']:.1f}" for name in ("hidden", "gists")),
            f"{limit:.0f} " + ("met" if worst <= limit else "[red]missed[/red]"),
        )
    # A table that goes into a file is not to be folded at 80 columns.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    options = parse()
    facts = machine()
    cases = []
    for tokens in options.tokens:
        progress.print(f"{tokens:,} tokens")
        for kind in options.kinds:
            cases += [measure(tokens, window, kind, options.repeat) for window in options.windows]
    show(cases)
    print(
        f"{facts['cpu']}, {facts['cores']} cores, shared or not as the load says: {facts['load_at_start'][0]} at the "
        f"start. Python {facts['python']}, numpy {np.__version__}, revision {facts['revision'] or 'unknown'}. "
        f"{facts['date']}; {options.repeat} measurements of each."
    )
    if options.json:
        lines = [facts | {"repeat": options.repeat}, *cases]
        options.json.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
