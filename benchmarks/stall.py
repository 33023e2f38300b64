"""How long an engine's loop waits while a plan is made in the thread beside it.

    .venv/bin/python benchmarks/stall.py
    .venv/bin/python benchmarks/stall.py --tokens 65536 --plans 4      # see whether it works

A plan runs in a thread of the engine's process, and Python lets one thread of a process run at a time: whatever a plan
does without letting go of that lock (the GIL) keeps the step of every other request waiting. So a thread that stands
for the engine's loop asks for the lock every millisecond and notes by how much too late it got it: with nothing beside
it, while histories are planned (tree, lenses, allocation), while the focus of an answer is renewed, and beside a thread
that never lets go by itself, which is what this would look like (Python takes the lock away after 5 ms).
The goal: no step is later by more than 2 ms, beyond what the machine does to a process that does nothing.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from workload import machine, progress

from megacontext_vllm.cli.eval_commands import DEFAULT_MODEL
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.engine.plan import Planner, PlanRequest
from megacontext_vllm.engine.token_transport import TokenArray
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.needle import Needle
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of

BEAT = 0.001
GOAL = 2.0  # milliseconds
ANSWER = 64


def lateness(running: Callable[[], bool]) -> list[float]:
    """Milliseconds by which each beat came too late, as long as ``running``."""
    late = []
    while running():
        started = time.perf_counter()
        time.sleep(BEAT)  # lets go of the lock, and has to get it back
        late.append(1000 * (time.perf_counter() - started - BEAT))
    return late


def beside(work: Future[Any]) -> list[float]:
    late = lateness(lambda: not work.done())
    work.result()
    return late


def seconds_of(seconds: float) -> Callable[[], bool]:
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() < until


def never_lets_go(seconds: float) -> None:
    running = seconds_of(seconds)
    while running():
        pass


def measure(planner: Planner, prompts: list[npt.NDArray[np.uint32]], window: int) -> dict[str, list[float]]:
    namespace = namespace_of(None)
    late: dict[str, list[float]] = {"nothing": [], "plans": [], "renewed": [], "held": []}
    with ThreadPoolExecutor(max_workers=1) as thread:

        def plan(prompt: TokenArray | npt.NDArray[np.uint32], behind: list[int]) -> list[float]:
            request = PlanRequest("stall", namespace, prompt, window, False, len(behind), behind)
            work = thread.submit(planner.plan, request, gists=False)
            found = beside(work)
            planner.library.release(work.result().tree)
            return found

        for prompt in prompts:
            started = time.perf_counter()
            late["plans"] += plan(TokenArray(prompt), [])  # as the front end sends it
            late["renewed"] += plan(prompt, prompt[-400 : ANSWER - 400].tolist())
            took = time.perf_counter() - started
            late["nothing"] += lateness(seconds_of(took))
            late["held"] += beside(thread.submit(never_lets_go, 0.05))
    return late


def show(late: dict[str, list[float]], tokens: int) -> None:
    names = {
        "nothing": "nothing",
        "plans": f"plans of {tokens:,} tokens",
        "renewed": "renewed plans, 64 tokens into an answer",
        "held": "a thread that never lets go",
    }
    table = Table("beside", "beats", "median", "99 %", "longest", f"later than {GOAL:.0f} ms")
    table.caption = "milliseconds too late"
    for name, title in names.items():
        values = np.array(late[name])
        numbers = (np.median(values), np.percentile(values, 99), values.max())
        table.add_row(title, f"{len(values):,}", *(f"{n:.2f}" for n in numbers), f"{(values > GOAL).mean():.2%}")
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="its tokenizer (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=1_000_000, metavar="N", help="each (default: %(default)s)")
    parser.add_argument("--window", type=int, default=2048, metavar="N", help="entries (default: %(default)s)")
    parser.add_argument("--plans", type=int, default=24, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there, too")
    options = parser.parse_args()
    facts = machine()
    chat = ChatFormat(AutoTokenizer.from_pretrained(str(options.model)))
    filler = Filler.from_corpus(chat.tokenizer, options.model / "tokenizer.json")
    progress.print("making the questions")
    prompts: list[npt.NDArray[np.uint32]] = []
    while len(prompts) < options.plans:
        samples = Needle().samples(filler, chat, options.tokens, seed=len(prompts))
        prompts += [chat.prompt(sample).tokens for sample in samples][: options.plans - len(prompts)]
    with tempfile.TemporaryDirectory(prefix="megacontext-stall-") as store:
        planner = Planner(
            TreeLibrary(Path(store), bytes(16)),
            Focus.of(chat.tokenizer, MegaContextConfig()),
            gist_fingerprint=None,
            model_fingerprint=bytes(16),
            text_memory=1 << 30,
        )
        gc.collect()
        gc.freeze()  # as vLLM does at its start
        progress.print("planning")
        late = measure(planner, prompts, options.window)
        gc.unfreeze()
    show(late, options.tokens)
    print(
        f"{facts['cpu']}, {facts['cores']} cores; load {facts['load_at_start'][0]} at the start. "
        f"Python {facts['python']}, numpy {np.__version__}, revision {facts['revision'] or 'unknown'}. {facts['date']}."
    )
    if options.json:
        rounded = {kind: np.round(values, 2).tolist() for kind, values in late.items()}
        options.json.write_text(json.dumps({"machine": facts, "late": rounded}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
