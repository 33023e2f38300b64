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
from megacontext_vllm.cli.text import age_text, one_line, out, size_text, time_text
from megacontext_vllm.errors import CorruptTreeError, RequestError
from megacontext_vllm.tree.nodes import BLOCK


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
        for heading in ("tree", "tokens", "levels", "on disk", "created", "last use"):
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
    start, stop = options.start, options.stop
    with closing(open_tree(folder)) as tree:
        length = tree.length
        if not 0 <= start <= stop <= length:
            raise RequestError(f"tokens {start} to {stop} are not within tree {tree.tree_id}, which has {length:,}")
        ids = tree.tokens(start, stop).tolist()
    if options.tokenizer is not None:
        print(decode(options.tokenizer, ids))
    else:
        width = len(f"{stop:,}")
        for at in range(0, len(ids), BLOCK):
            print(f"{start + at:>{width},}  {' '.join(map(str, ids[at : at + BLOCK]))}")
    return 0


def decode(folder: Path, ids: list[int]) -> str:
    """Text of token ids, special tokens included, with the tokenizer in ``folder``. Raises RequestError."""
    if not folder.exists():
        raise RequestError(f"there is no tokenizer folder {folder}")
    file = folder / "tokenizer.json"
    try:
        if file.exists():
            from tokenizers import Tokenizer  # type: ignore[import-untyped,unused-ignore]

            tokenizer = Tokenizer.from_file(str(file))
            size = tokenizer.get_vocab_size(with_added_tokens=True)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            size = len(tokenizer)
    except ImportError as error:
        raise RequestError(f"--tokenizer needs the package {error.name}: pip install {error.name}") from None
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestError(f"{folder} holds no tokenizer that can be loaded: {one_line(error)}") from None
    if ids and max(ids) >= size:
        raise RequestError(f"token {max(ids)} is beyond the {size:,} tokens of {folder}: the tree is another model's")
    return str(tokenizer.decode(ids, skip_special_tokens=False))
