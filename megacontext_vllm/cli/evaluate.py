"""``megacontext eval``: see ``eval_commands.py``. The heavy imports are inside: other commands do without torch."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.text import out
from megacontext_vllm.config import MegaContextConfig, default_store
from megacontext_vllm.errors import EvaluationError

if TYPE_CHECKING:
    from megacontext_vllm.eval.methods.base import Tools
    from megacontext_vllm.eval.prompt import ChatFormat
    from megacontext_vllm.eval.readers.base import Reader
    from megacontext_vllm.eval.tasks.filler import Filler

ROOM = 256
"""Positions left for what stands around a history that is shown whole, and for the answer."""
QUICK: dict[str, Any] = {
    "lengths": [4_096, 65_536],
    "budgets": [512],
    "histories": 1,
    "methods": ["bm25_256", "megacontext", "oracle"],
}


def run(options: argparse.Namespace) -> int:
    from megacontext_vllm.cli.eval_commands import BUDGETS, HISTORIES, LENGTHS
    from megacontext_vllm.eval import run as loop
    from megacontext_vllm.eval.methods import METHODS, kinds, make
    from megacontext_vllm.eval.records import Results
    from megacontext_vllm.eval.report import costs, tables
    from megacontext_vllm.eval.summary import summarise

    require_histories(options)
    if options.quick:
        for name, value in QUICK.items():
            setattr(options, name, getattr(options, name) or value)
    tasks = tasks_of(options.tasks)
    served, embeddings = options.reader.startswith("http"), options.reader == "transformers"
    names = options.methods or [
        name
        for name, kind in METHODS.items()
        if (served or not kind.needs_server) and (embeddings or not kind.shows_gists)
    ]
    lengths, budgets = options.lengths or LENGTHS, options.budgets or BUDGETS
    asking = [kind.name for kind in kinds(names) if kind.needs_server]
    if asking and not served:
        raise EvaluationError(f"{asking[0]} needs a server: --reader http://HOST:PORT/v1")
    require_budgets("--budgets", budgets, names)
    require_nets(options)
    chat = chat_of(options.model)
    reader = _reader(options, chat)
    methods = make(names, tools_of(chat, reader, options))
    filler = filler_of(options, chat)
    plan = loop.Plan(tasks, lengths, methods, budgets, options.histories or HISTORIES)
    results = Results(options.out / "results.jsonl", setting_of(options, reader))
    with bar("measuring histories") as progress:
        loop.run(plan, filler, chat, reader, results, progress)
    cells = summarise(results.records)
    console = out()
    for table in tables(cells):
        console.print(table)
    console.print(costs(cells))
    console.print(f"Results: {results.path}. Pictures: megacontext eval report {options.out} --plots", markup=False)
    return 0


def require_histories(options: argparse.Namespace) -> None:
    """Raises EvaluationError for none, or less."""
    if options.histories is not None and options.histories < 1:
        raise EvaluationError(f"--histories {options.histories}: give 1 or more")


def require_budgets(flag: str, budgets: Sequence[int], names: Sequence[str]) -> None:
    """Raises EvaluationError for what one of these methods cannot be asked at."""
    from megacontext_vllm.eval.methods import kinds

    for kind in kinds(names):
        if min(budgets) < kind.least_budget:
            raise EvaluationError(f"{flag} {min(budgets)}: {kind.name} needs {kind.least_budget} or more")


def require_nets(options: argparse.Namespace) -> None:
    """Raises ConfigError for nets that are not there: known before the model is loaded, which takes long."""
    if options.encoder is not None:
        from megacontext_vllm.nets.sentence_encoder import require_encoder

        require_encoder(options.encoder)
    if net := _gist_net(options):
        from megacontext_vllm.nets.gistnet import require_gist_net

        require_gist_net(net)


def report(options: argparse.Namespace) -> int:
    from megacontext_vllm.eval.records import read_results
    from megacontext_vllm.eval.report import costs, markdown, tables
    from megacontext_vllm.eval.summary import pool_lengths, summarise

    records = [record for folder in options.out for record in read_results(folder / "results.jsonl")[1]]
    cells = summarise(pool_lengths(records) if options.pool else records)
    if options.json:
        print(json.dumps([asdict(cell) for cell in cells], indent=1))
    elif options.markdown:
        print(markdown(cells), end="")
    else:
        console = out()
        for table in [*tables(cells), costs(cells)]:
            console.print(table)
    if options.plots:
        from megacontext_vllm.eval.plots import draw

        for path in draw(cells, records, options.out[0] / "plots"):
            out().print(str(path), markup=False, soft_wrap=True)
    return 0


def list_tasks(options: argparse.Namespace) -> int:
    from megacontext_vllm.eval.tasks import TASKS

    rows = [
        {"name": task.name, "summary": task.summary, "for_larger_readers": task.for_larger_readers}
        for task in TASKS.values()
    ]
    return _listing(rows, options.json)


def list_methods(options: argparse.Namespace) -> int:
    from megacontext_vllm.eval.methods import METHODS

    return _listing([{"name": kind.name, "summary": kind.summary} for kind in METHODS.values()], options.json)


def show(options: argparse.Namespace) -> int:
    from megacontext_vllm.eval.methods import METHODS, make
    from megacontext_vllm.eval.methods.base import View
    from megacontext_vllm.eval.run import select

    (task,) = tasks_of([options.task])
    names = options.methods or [n for n, kind in METHODS.items() if not kind.shows_gists and not kind.needs_server]
    require_budgets("--budget", [options.budget], names)
    require_nets(options)
    chat = chat_of(options.model)
    sample = task.samples(filler_of(options, chat), chat, options.length, options.seed)[0]
    prompt = chat.prompt(sample)
    console = out()
    console.print(f"[bold]question[/bold]  {sample.question or '(go on)'}")
    console.print(f"[bold]answer[/bold]    {sample.answer_start}…{sample.answer}   of {', '.join(sample.candidates)}")
    for start, stop in sample.evidence:
        text = chat.decode(sample.history.tokens[start:stop])
        console.print(f"[bold]evidence[/bold]  {start:,}–{stop:,} of {len(prompt.history):,}: {text}")
    for method in make(names, tools_of(chat, None, options)):
        if not method.fits(len(prompt.history), options.budget) or (method.name == "oracle" and not sample.evidence):
            continue
        context = select(method, View(prompt, method.index(prompt.history)), options.budget, sample)
        recall = f", recall {context.recall(sample.evidence):.2f}" if sample.evidence else ""
        console.print(f"\n[bold]{method.name}[/bold]: {context.cost} entries, {len(context.raw)} pieces{recall}")
        if options.text:
            console.print(" […] ".join(chat.decode(prompt.history[a:b]) for a, b in context.raw), markup=False)
    return 0


def gists(options: argparse.Namespace) -> int:
    import torch

    from megacontext_vllm.eval.gists.report import tables
    from megacontext_vllm.eval.gists.run import LAYOUTS, measure_gists
    from megacontext_vllm.eval.gists.showing import Positions

    positions = (Positions.COMPACT, Positions.SPAN) if options.positions else (Positions.COMPACT,)
    if unknown := [name for name in options.layouts or () if name not in LAYOUTS]:
        raise EvaluationError(f"no layout {unknown[0]!r}; there are: {', '.join(map(repr, LAYOUTS))}")
    with bar("measuring windows") as progress:
        report = measure_gists(
            options.model,
            layouts=[LAYOUTS[name] for name in options.layouts or LAYOUTS],
            windows=options.windows,
            net_folders=options.net,
            makers=options.makers,
            seed=options.seed,
            split=options.split,
            positions=positions,
            dtype=getattr(torch, options.dtype),
            threads=options.threads,
            quick=options.quick,
            progress=progress,
        )
    if options.json:
        print(json.dumps(report.to_json(), indent=1))
        return 0
    console = out()
    for table in tables(report):
        console.print(table)
    return 0


def _listing(rows: list[dict[str, Any]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(rows, indent=1))
        return 0
    table = Table("name", "what it is", box=box.SIMPLE_HEAD)
    for row in rows:
        hard = " [dim](the default model cannot, whatever it is shown)[/dim]" if row.get("for_larger_readers") else ""
        table.add_row(f"[bold]{row['name']}[/bold]", row["summary"] + hard)
    out().print(table)
    return 0


def tasks_of(names: Sequence[str] | None) -> list[Any]:
    from megacontext_vllm.eval.tasks import TASKS

    if unknown := [name for name in names or () if name not in TASKS]:
        raise EvaluationError(f"no task {unknown[0]!r}; there are: {', '.join(TASKS)}")
    return [TASKS[name] for name in names or TASKS]


def chat_of(model: Path) -> "ChatFormat":
    from transformers import AutoTokenizer

    from megacontext_vllm.eval.prompt import ChatFormat

    if not (model / "tokenizer.json").exists():
        raise EvaluationError(f"{model} has no tokenizer.json; give a model's folder (--model), or run: make model")
    return ChatFormat(AutoTokenizer.from_pretrained(str(model)))


def filler_of(options: argparse.Namespace, chat: "ChatFormat") -> "Filler":
    from megacontext_vllm.eval.tasks.filler import Filler

    return Filler.from_corpus(chat.tokenizer, options.model / "tokenizer.json", split=options.split)


def _reader(options: argparse.Namespace, chat: "ChatFormat") -> "Reader | None":
    if options.reader == "none":
        return None
    if options.reader.startswith(("http://", "https://")):
        from megacontext_vllm.eval.readers.server_reader import ServerReader

        return ServerReader(
            options.reader,
            options.served_model,
            chat=chat,
            structured_choice=options.structured_choice,
            # Candidates are made to follow the beginning; without it, the choice was seen to contradict the answer.
            start_answer=options.start_answer or options.structured_choice,
        )
    if options.reader != "transformers":
        raise EvaluationError(f"--reader {options.reader!r}: give 'transformers', 'none' or a server's http:// URL")
    import torch

    from megacontext_vllm.eval.readers.transformers_reader import TransformersReader

    return TransformersReader(options.model, getattr(torch, options.dtype), threads=options.threads)


def tools_of(chat: "ChatFormat", reader: "Reader | None", options: argparse.Namespace) -> "Tools":
    from megacontext_vllm.eval.methods.base import Tools

    limit = getattr(reader, "limit", None)
    settings = MegaContextConfig(lens=options.lens, encoder=options.encoder, gist_net=_gist_net(options))
    return Tools(
        chat,
        chat.encode(settings.gap_marker).tolist(),
        default_store().parent / "eval",
        getattr(reader, "embedding", None),
        longest=None if limit is None else limit - ROOM,
        settings=settings,
    )


def _gist_net(options: argparse.Namespace) -> str | None:
    """Only some commands show gists."""
    return getattr(options, "gist_net", None)


def setting_of(options: argparse.Namespace, reader: "Reader | None") -> dict[str, Any]:
    """What results must have in common."""
    from megacontext_vllm.corpus import corpus_folder

    tokenizer = blake2b((options.model / "tokenizer.json").read_bytes(), digest_size=8).hexdigest()
    return {
        "reader": reader.name if reader else "none",
        "tokenizer": tokenizer,
        "corpus": corpus_folder().name,
        "split": options.split,
        # Unsaid where it is the default, so that results from before there was a choice can be added to.
        **({"lens": options.lens} if options.lens != MegaContextConfig().lens else {}),
        **({"encoder": "/".join(options.encoder.resolve().parts[-2:])} if options.encoder else {}),
        **({"gist_net": "/".join(Path(net).resolve().parts[-2:])} if (net := _gist_net(options)) else {}),
    }
