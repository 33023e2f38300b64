"""``megacontext eval worth``: what a utility is worth to the reader."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from megacontext_vllm.cli import evaluate
from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.text import out
from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.records import append_rows, cut_torn_line

if TYPE_CHECKING:
    from megacontext_vllm.eval.worth import Tried

LENGTHS = (65_536, 1_000_000)
NAME = "worth.jsonl"


def add_worth(actions: Any, parents: list[argparse.ArgumentParser]) -> None:
    """``actions``: the subparsers of ``megacontext eval``."""
    worth = actions.add_parser(
        "worth",
        parents=parents,
        help="what a block is worth to the reader beside what the lenses say of it",
        description="Shows or hides one block at a time and reads the right answer again: the nats that it saves. "
        "Says whether the utilities order blocks rightly, and what each is worth on average (focus/calibration.py). "
        "What is in DIR already is not measured again.",
        epilog="example:  megacontext eval worth --split train --dtype bfloat16 --out worth --plot",
    )
    worth.add_argument(
        "--out", type=Path, default=Path("megacontext-worth"), metavar="DIR", help="default: %(default)s"
    )
    worth.add_argument("--tasks", nargs="+", metavar="TASK", help="default: all that ask something")
    lengths = " ".join(map(str, LENGTHS))
    worth.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, metavar="N", help=f"default: {lengths}")
    worth.add_argument("--budget", type=int, default=512, metavar="N", help="entries (default: %(default)s)")
    worth.add_argument("--histories", type=int, default=2, metavar="N", help="per task and length (default: 2)")
    worth.add_argument("--plot", action="store_true", help="draw DIR/worth.png")
    worth.set_defaults(run=worth_of_blocks)


def worth_of_blocks(options: argparse.Namespace) -> int:
    import torch

    from megacontext_vllm.eval.methods.megacontext import MegaContext
    from megacontext_vllm.eval.readers.transformers_reader import TransformersReader
    from megacontext_vllm.eval.tasks import TASKS

    asking = [name for name in TASKS if name != "continuation"]
    tasks = evaluate.tasks_of(options.tasks or asking)
    if any(task.name == "continuation" for task in tasks):
        raise EvaluationError(f"'continuation' asks nothing: give some of {', '.join(asking)}.")
    evaluate.require_histories(options)
    evaluate.require_budgets("--budget", [options.budget], [MegaContext.name])
    evaluate.require_nets(options)
    chat = evaluate.chat_of(options.model)
    filler = evaluate.filler_of(options, chat)
    reader = TransformersReader(options.model, getattr(torch, options.dtype), threads=options.threads)
    method = MegaContext(evaluate.tools_of(chat, reader, options))
    show(_measured(options, tasks, filler, method, reader), options)
    return 0


def _measured(
    options: argparse.Namespace, tasks: Sequence[Any], filler: Any, method: Any, reader: Any
) -> "list[Tried]":
    """All that is wanted, with what is in the folder already; a history is a line, so that none is there by halves."""
    import numpy as np

    from megacontext_vllm.eval.worth import Tried, try_blocks

    path = options.out / NAME
    options.out.mkdir(parents=True, exist_ok=True)
    found = dict(_read(path, {**evaluate.setting_of(options, reader), "budget": options.budget}))
    wanted = []
    work = [(seed, length, task) for seed in range(options.histories) for length in options.lengths for task in tasks]
    with bar("trying blocks") as progress:
        for done, (seed, length, task) in enumerate(work):
            progress(done, len(work))
            samples = task.samples(filler, reader.chat, length, seed)
            history = samples[0].history.id
            if history not in found:
                rng = np.random.default_rng([seed, length])
                found[history] = [asdict(one) for one in try_blocks(method, reader, samples, options.budget, rng)]
                append_rows(path, [[history, found[history]]])
            wanted += [Tried(**one) for one in found[history]]
        progress(len(work), len(work))
    return wanted


def _read(path: Path, setting: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(history, what was tried of it) of a file, which is begun if there is none; half a line at its end is cut off."""
    cut_torn_line(path)
    if not path.exists() or not path.stat().st_size:
        append_rows(path, [setting])
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        measured, *read = map(json.loads, lines)
    except json.JSONDecodeError as error:
        raise EvaluationError(f"{path} is damaged ({error}): give another --out, or move that file away.") from error
    if measured != setting:
        raise EvaluationError(f"{path} was measured otherwise ({lines[0]}): give another --out.")
    return read


def show(tried: "Sequence[Tried]", options: argparse.Namespace) -> None:
    """Tables, and the picture where one is wanted."""
    from megacontext_vllm.eval.worth import calibrate, ordered, ranges

    console = out()
    table = Table("utility", "blocks", "mean gain, nats", "95 %", "with evidence", box=box.SIMPLE_HEAD)
    for part in ranges(tried):
        within = [one for one in tried if part.low <= one.utility < part.high]
        share = sum(one.evidence for one in within) / len(within)
        sure = f"[{part.sure[0]:+.2f}, {part.sure[1]:+.2f}]"
        table.add_row(f"{part.low:g} – {part.high:g}", f"{part.blocks}", f"{part.gain:+.3f}", sure, f"{share:.2f}")
    console.print(table)
    share, pairs = ordered(tried)
    console.print(f"Of {pairs} pairs of blocks of a question, one clearly better, {share:.2f} are ordered rightly.")
    knots = ", ".join(f"({utility:g}, {gain:g})" for utility, gain in calibrate(tried))
    console.print(f"Expected gain, for focus/calibration.py: {knots}")
    if options.plot:
        from megacontext_vllm.eval.plots import draw_worth

        console.print(str(draw_worth(ranges(tried), calibrate(tried), options.out)), markup=False, soft_wrap=True)
