"""``megacontext tree``: the stored trees as tables, JSON, token ids or text."""

import argparse
import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.markup import escape
from rich.table import Table

from megacontext_vllm.cli.stored import (
    StoredTree,
    find_folder,
    last_accesses,
    open_tree,
    place_text,
    read_tree,
    read_trees,
)
from megacontext_vllm.cli.text import age_text, out, size_text, time_text
from megacontext_vllm.cli.tokenizer import load_decoder
from megacontext_vllm.errors import CorruptTreeError, RequestError
from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes
from megacontext_vllm.tree.sealed import SealedSpans


def ls(options: argparse.Namespace) -> int:
    trees = read_trees(options.store, options.namespace)
    if options.json:
        print(json.dumps([asdict(tree) for tree in trees], indent=1))
        return 0
    console = out()
    if not trees:
        console.print(f"No trees in {place_text(options.store, options.namespace)}.", markup=False)
        return 0
    for namespace in dict.fromkeys(tree.namespace for tree in trees):
        table = Table(box=box.SIMPLE_HEAD, title=f"namespace {namespace}", title_justify="left")
        for heading in ("tree", "tokens", "levels", "on disk", "created", "last use", "name"):
            number = heading in ("tokens", "levels", "on disk")
            table.add_column(heading, justify="right" if number else "left", no_wrap=True)
        for tree in (tree for tree in trees if tree.namespace == namespace):
            table.add_row(
                tree.tree_id,
                "[red]damaged[/red]" if tree.damage else f"{tree.tokens:,}",
                levels_text(tree),
                size_text(tree.bytes_on_disk),
                age_text(tree.created),
                age_text(tree.last_access),
                escape(tree.name or "") + (" [dim](pinned)[/dim]" if tree.pinned else ""),
            )
        console.print(table)
    tokens, size = sum(tree.tokens for tree in trees), sum(tree.bytes_on_disk for tree in trees)
    console.print(f"{len(trees):,} trees, {tokens:,} tokens, {size_text(size)} in {options.store}", markup=False)
    return 0


def levels_text(tree: StoredTree) -> str:
    """``LOD0–3`` for tokens and gists of three levels."""
    top = max((level.level for level in tree.levels if level.rows), default=0)
    return f"LOD0–{top}" if top else "LOD0"


def info(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    tree = read_tree(folder, last_accesses(options.store))
    if options.json:
        print(json.dumps(asdict(tree), indent=1))
    if tree.damage:
        raise CorruptTreeError(tree.damage)
    if not options.json:
        print_facts(tree)
    return 0


def print_facts(tree: StoredTree) -> None:
    facts = Table.grid(padding=(0, 2))
    for name, value in (
        ("tree", tree.tree_id),
        ("name", (tree.name or "–") + (" (pinned)" if tree.pinned else "")),
        ("namespace", tree.namespace),
        ("folder", tree.path),
        ("tokens", f"{tree.tokens:,}"),
        ("on disk", size_text(tree.bytes_on_disk)),
        ("created", time_text(tree.created)),
        ("last use", time_text(tree.last_access)),
        ("model", f"{tree.model_fingerprint} (fingerprint of tokenizer and embedding table)"),
    ):
        facts.add_row(f"[bold]{name}[/bold]", escape(value))
    table = Table("level", "rows", "of", "rows are", "on disk", "state", box=box.SIMPLE_HEAD)
    for level in tree.levels:
        gists = f"gists of {BLOCK**level.level:,} tokens, {level.dim} {level.row_type}"
        state = level.damage or ("complete" if level.rows >= level.nodes else "being made, or made on demand")
        table.add_row(
            f"LOD{level.level}",
            f"{level.rows:,}",
            f"{level.nodes:,}",
            gists if level.level else "token ids",
            size_text(level.bytes_on_disk),
            escape(state),
        )
    console = out()
    console.print(facts)
    console.print(table)


def show(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    if options.start is None:
        print_pyramid(read_tree(folder, {}))
        return 0
    start = options.start
    with closing(open_tree(folder)) as tree:
        length = tree.length
        stop = min(start + BLOCK, length) if options.stop is None else options.stop
        if not 0 <= start <= stop <= length:
            raise RequestError(f"tokens {start} to {stop} are not within tree {tree.tree_id}, which has {length:,}")
        ids = tree.read_tokens(start, stop).tolist()
    if options.tokenizer is not None:
        print(load_decoder(options.tokenizer)(ids))
    else:
        width = len(f"{stop:,}")
        for at in range(0, len(ids), BLOCK):
            print(f"{start + at:>{width},}  {' '.join(map(str, ids[at : at + BLOCK]))}")
    return 0


def print_pyramid(tree: StoredTree) -> None:
    """The levels of a tree, one bar each, the top first; how far each is made."""
    console = out()
    if tree.damage:
        raise CorruptTreeError(tree.damage)
    made = {level.level: level for level in tree.levels}
    widest = max(console.width - 50, 10)
    top = depth(tree.tokens)
    for level in range(top, -1, -1):
        nodes = num_nodes(tree.tokens, level)
        rows = made[level].rows if level in made else 0
        # One node less per level makes a pyramid; true proportions, 32 to 1, would leave a single column on top.
        width = max(widest * (top + 1 - level) // (top + 1), 1)
        full = width * min(rows, nodes) // nodes if nodes else width
        line = f"[green]{'█' * full}[/green][dim]{'░' * (width - full)}[/dim]"
        what = "tokens" if level == 0 else f"gists of {BLOCK**level:,} tokens"
        state = "" if rows >= nodes else f", {rows:,} made"
        console.print(f"LOD{level}  {' ' * ((widest - width) // 2)}{line}  {nodes:,} {what}{state}", soft_wrap=True)
    for item in SealedSpans.of(Path(tree.path)):
        console.print(f"tokens {item.start:,} to {item.stop:,} are {item.kind}; their gist is left", soft_wrap=True)
