"""``megacontext tree verify|repair|rename|pin|unpin|rm``: what looks after stored trees.

All of it may run beside servers that use the store; what would take something from under a request is refused then.
"""

import argparse
import json
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.markup import escape

from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.stored import chosen_folders, find_folder
from megacontext_vllm.cli.text import out
from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.repair import Repaired, repair_tree
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.tree import DELETED_SUFFIX
from megacontext_vllm.tree.verify import Verified, verify_tree


def verify(options: argparse.Namespace) -> int:
    """Returns 1 if anything is damaged."""
    found: list[dict[str, object]] = []
    for folder in chosen_folders(options):
        try:
            with bar(f"tree {folder.name[:8]}") as progress:
                found.append(verified_json(verify_tree(folder, progress)))
        except StoreError as error:
            found.append({"tree_id": folder.name, "namespace": folder.parent.name, "error": str(error), "damage": []})
    damaged = sum(1 for item in found if item["damage"] or "error" in item)
    if options.json:
        print(json.dumps(found, indent=1))
        return 1 if damaged else 0
    console = out()
    for item in found:
        damage = item["damage"]
        assert isinstance(damage, list)
        lines = [str(item["error"])] if "error" in item else [str(part["text"]) for part in damage]
        state = "[red]damaged[/red]" if lines else "[green]sound[/green]"
        console.print(f"{item['tree_id']}  {state}", highlight=False)
        for line in lines:
            console.print(f"    {escape(line)}", soft_wrap=True)
    advice = " Mend one: megacontext tree repair TREE" if damaged else ""
    console.print(f"{len(found):,} trees, {damaged:,} damaged.{advice}")
    return 1 if damaged else 0


def verified_json(found: Verified) -> dict[str, object]:
    return {
        "tree_id": found.path.name,
        "namespace": found.path.parent.name,
        "tokens": found.length,
        "pages": found.pages,
        "damage": [
            {
                "level": item.level,
                "rows": [item.start, item.stop],
                "tokens": item.tokens,
                "reason": item.reason,
                "text": str(item),
            }
            for item in found.damage
        ],
    }


def repair(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    with bar(f"tree {folder.name[:8]}") as progress:
        done = repair_tree(folder, trust=options.trust, progress=progress)
    if options.json:
        print(json.dumps(repaired_json(done), indent=1))
        return 0
    for line in repaired_text(done):
        print(line)
    return 0


def repaired_json(done: Repaired) -> dict[str, object]:
    return {
        **verified_json(done.before),
        "tokens_after": done.length,
        "copied_back": done.copied_back,
        "lost": done.lost,
        "cut_off": done.cut_off,
        "gists_made_again_from": done.gists_dropped,
    }


def repaired_text(done: Repaired) -> Iterator[str]:
    if not done.before.damage:
        yield "Nothing was damaged; nothing was changed."
        return
    for start, stop in done.copied_back:
        yield f"tokens {start:,} to {stop:,}: copied back from another tree that has them"
    for start, stop in done.lost:
        yield f"tokens {start:,} to {stop:,}: lost; sealed, so that they are never shown"
    if done.cut_off is not None:
        yield f"tokens {done.cut_off[0]:,} to {done.cut_off[1]:,}: lost at the end; cut off"
    for level, row in sorted(done.gists_dropped.items()):
        yield f"gists of LOD{level} from {row:,} on: will be made again with the next use"
    yield f"The tree has {done.length:,} tokens, and is sound."


def rename(options: argparse.Namespace) -> int:
    with tree_of(options) as (library, namespace, tree_id):
        library.rename(namespace, tree_id, options.name)
    print(f"{tree_id} is called {options.name!r}." if options.name else f"{tree_id} has no name any more.")
    return 0


def pin(options: argparse.Namespace) -> int:
    with tree_of(options) as (library, namespace, tree_id):
        library.pin(namespace, tree_id, options.pinned)
    print(f"{tree_id} is {'pinned: retention leaves it alone' if options.pinned else 'not pinned any more'}.")
    return 0


def rm(options: argparse.Namespace) -> int:
    folder = find_folder(options.store, options.namespace, options.tree)
    if not options.yes:
        if not sys.stdin.isatty():
            raise RequestError("deleting cannot be undone; say --yes if you mean it, or export the tree before")
        answer = input(f"Delete tree {folder.name} of namespace {folder.parent.name}? It cannot be undone. [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return 1
    try:
        with library_of(options.store, folder) as library:
            library.delete(folder.parent.name, folder.name)
    except CorruptTreeError:  # not even its meta.json can be read, so no library knows it
        with claim(folder):
            grave = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{DELETED_SUFFIX}")
            folder.rename(grave)
        shutil.rmtree(grave, ignore_errors=True)
    print(f"{folder.name} is deleted.")
    return 0


@contextmanager
def tree_of(options: argparse.Namespace) -> Iterator[tuple[TreeLibrary, str, str]]:
    """Library, namespace and id of the tree that ``options`` name."""
    folder = find_folder(options.store, options.namespace, options.tree)
    with library_of(options.store, folder) as library:
        yield library, folder.parent.name, folder.name


@contextmanager
def library_of(store: Path, folder: Path) -> Iterator[TreeLibrary]:
    """The library of the model that the tree in ``folder`` belongs to."""
    library = TreeLibrary(store, bytes.fromhex(read_meta(folder)["model_fingerprint"]))
    try:
        yield library
    finally:
        library.close()
