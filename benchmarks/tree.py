"""What the tree store costs, beside a plain np.memmap of the same bytes where there is one to compare it with.

    .venv/bin/python benchmarks/tree.py
    .venv/bin/python benchmarks/tree.py --quick        # see whether it works; its numbers mean little
    .venv/bin/python benchmarks/tree.py --parts read open
    .venv/bin/python benchmarks/tree.py --billion      # also a tree of a billion tokens: about 5 GB

The parts:
  append   tokens, and gists of 576 values, in chunks of 32 to 1,048,576 tokens. np.memmap copies the same chunks into a
           file that has its final size already, and into one that grows with each chunk, as a tree does.
  read     views that are summed, and copies that are compared with their checksums, in order and at random.
  open     trees of 1, 10 and 100 million tokens, up to the view of their last token.
  lookup   finding a stored history among 10,000 trees, of which 100 share a prefix and a few a very long one.
  memory   what a process takes per token, page cache apart, that holds 64 trees of a million tokens and read them all.
  billion  (--billion) a tree of 1,000,000,000 tokens: built, reopened, read at random, cold and warm.

Ratios are of throughputs: 0.7 of np.memmap takes 1.43 times as long. Contenders take turns within one run, and what
counts is the median. Nothing is forced to the disk (fsync policy "never") and everything but "cold" is in the page
cache. Whatever is read is compared with what was written; if it differs, nothing is reported.
"""

import argparse
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tree_billion import measure_billion
from tree_data import MIB, Row, Scale
from tree_files import measure_append, measure_open, measure_read
from tree_store import measure_lookup, measure_memory
from workload import machine, progress

PARTS = {
    "append": measure_append,
    "read": measure_read,
    "open": measure_open,
    "lookup": measure_lookup,
    "memory": measure_memory,
}
FULL = Scale(
    repeat=7,
    race_bytes=128 * MIB,
    read_tokens=1 << 26,
    open_tokens=(1_000_000, 10_000_000, 100_000_000),
    opens=20,
    trees=10_000,
    lookups=500,
    held_trees=64,
    held_tokens=1_000_000,
    billion_tokens=1_000_000_000,
    random_reads=10_000,
)
QUICK = replace(
    FULL,
    repeat=3,
    race_bytes=16 * MIB,
    read_tokens=1 << 23,
    open_tokens=(1_000_000, 10_000_000),
    opens=5,
    trees=300,
    lookups=50,
    held_trees=4,
    billion_tokens=5_000_000,
    random_reads=1_000,
)
IN_MEMORY = ("tmpfs", "ramfs")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="which to run (default: all)")
    parser.add_argument("--billion", action="store_true", help="also the billion-token tree")
    parser.add_argument("--billion-tokens", type=int, metavar="N", help="its tokens (default: 1,000,000,000)")
    parser.add_argument("--repeat", type=int, metavar="N", help=f"heats of each race (default: {FULL.repeat})")
    parser.add_argument("--trees", type=int, metavar="N", help=f"of the lookup's store (default: {FULL.trees:,})")
    parser.add_argument("--folder", type=Path, help="work in there, on the disk to be measured (default: a temporary)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result there, one JSON line each")
    parser.add_argument("--quick", action="store_true", help="see whether it works: fewer, smaller")
    options = parser.parse_args()
    for name, least in (("billion_tokens", 2048), ("repeat", 1), ("trees", 40)):
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return options


def scale_of(options: argparse.Namespace) -> Scale:
    chosen = {name: getattr(options, name) for name in ("repeat", "trees", "billion_tokens")}
    return replace(QUICK if options.quick else FULL, **{name: value for name, value in chosen.items() if value})


def needed_bytes(options: argparse.Namespace, scale: Scale) -> int:
    """Free space that the largest of the wanted parts takes, with a fifth to spare."""
    per_token = 4 + 16 / 31  # gists of d = 8 in float16 at all levels
    needs: dict[str, float] = {
        "append": scale.race_bytes,
        "read": scale.read_tokens * per_token,
        "open": sum(scale.open_tokens) * per_token,
        "lookup": scale.trees * 40_000 + 20 * MIB,
        "memory": scale.held_trees * scale.held_tokens * per_token,
        "billion": scale.billion_tokens * per_token * options.billion,
    }
    return int(max([needs[part] for part in options.parts] + [needs["billion"]]) * 1.2)


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    above = {folder, *folder.parents}
    over = [(len(at), kind) for at, kind in mounts if Path(at) in above]
    return max(over)[1] if over else "unknown"


def work_folder(given: Path | None) -> Path:
    """A new folder for everything, on a disk."""
    parent = given or Path(tempfile.gettempdir())
    if given is None and file_system(parent.resolve()) in IN_MEMORY:
        parent = Path("/var/tmp")
    parent.mkdir(parents=True, exist_ok=True)
    if (kind := file_system(parent.resolve())) in IN_MEMORY:
        raise SystemExit(f"{parent} is in memory ({kind}); give a folder on a disk: --folder")
    return Path(tempfile.mkdtemp(prefix="megacontext-tree-", dir=parent)).resolve()


def show(rows: list[Row]) -> None:
    table = Table("part", "what", "result", "beside", "goal", "", caption="medians; larger ratios are better")
    previous = ""
    for row in rows:
        if previous and row.part != previous:
            table.add_section()
        verdict = "" if row.met is None else "met" if row.met else "[red]missed[/red]"
        table.add_row(row.part if row.part != previous else "", row.what, row.result, row.compared, row.goal, verdict)
        previous = row.part
    # A table that goes into a file is not to be folded at 80 columns.
    Console(width=None if sys.stdout.isatty() else 190).print(table)


def describe(facts: dict[str, Any], kind: str, scale: Scale, quick: bool) -> str:
    versions = facts["versions"]
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {kind}. Python {facts['python']}, "
        f"megacontext-vllm {versions['megacontext-vllm']}, revision {facts['revision'] or 'unknown'}. {facts['date']}; "
        f"load average at the start: {facts['load_at_start'][0]}. {scale.repeat} heats of each race"
        + (". --quick: too little of everything to quote." if quick else ".")
    )


def main() -> None:
    options = parse()
    scale = scale_of(options)
    facts = machine()
    folder = work_folder(options.folder)
    try:
        kind, free, need = file_system(folder), shutil.disk_usage(folder).free, needed_bytes(options, scale)
        if free < need:
            raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, {need / 1e9:.1f} needed: --folder, --parts")
        wanted = [(name, PARTS[name]) for name in PARTS if name in options.parts]
        rows: list[Row] = []
        for name, measure in [*wanted, *([("billion", measure_billion)] if options.billion else [])]:
            progress.print(f"{name}")
            rows += measure(folder, scale)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    print(describe(facts, kind, scale, options.quick))
    if options.json:
        first = Row("machine", "", "", data=facts | {"file_system": kind, "quick": options.quick})
        options.json.write_text("".join(row.line() + "\n" for row in [first, *rows]), encoding="utf-8")


if __name__ == "__main__":
    main()
