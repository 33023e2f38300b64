"""The parts of the tree benchmark that are about a store of many trees: finding a history, and memory."""

import gc
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from tree_data import MIB, MODEL, SMALL_DIM, Row, Scale, quantile, token_rows, write_gists, wrong

from megacontext_vllm.tree.nodes import depth
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.store.prefix_hash import chained_hashes

SHARED, LONG = 8_192, 262_144  # tokens in common
_SHARERS, _LONG_TREES = 100, 5
_NAMESPACE = "default"
progress = Console(stderr=True)


# ---- lookup ---------------------------------------------------------------------------------------------------------


def histories(count: int) -> dict[str, list[NDArray[np.uint32]]]:
    """``count`` histories by kind. Those of one kind begin alike, or all differently, and end differently."""
    draw = np.random.default_rng(4)

    def end() -> NDArray[np.uint32]:
        return draw.integers(0, 150_000, int(draw.integers(1_100, 4_000)), dtype=np.uint32)

    sharers = min(_SHARERS, count // 4)
    shared, long = token_rows(0, SHARED), token_rows(7, 7 + LONG)
    return {
        "alone": [end() for _ in range(count - sharers - _LONG_TREES)],
        f"{sharers} share {SHARED:,} tokens": [np.concatenate([shared, end()]) for _ in range(sharers)],
        f"{_LONG_TREES} share {LONG:,} tokens": [np.concatenate([long, end()]) for _ in range(_LONG_TREES)],
    }


def measure_lookup(folder: Path, scale: Scale) -> list[Row]:
    """acquire and release of stored histories, drawn at random; what hashing them takes is told apart."""
    kinds = histories(scale.trees)
    draw = np.random.default_rng(5)
    everyone = [history for some in kinds.values() for history in some]
    library = TreeLibrary(folder / "store", MODEL)
    started = time.perf_counter()
    for number, at in enumerate(draw.permutation(len(everyone))):
        library.release(library.acquire(_NAMESPACE, everyone[at]).tree)
        if number % 1000 == 999:
            progress.print(f"  {number + 1:,} trees stored, {time.perf_counter() - started:.0f} s")
    built = time.perf_counter() - started
    library.close()
    started = time.perf_counter()
    library = TreeLibrary(folder / "store", MODEL)
    seconds = time.perf_counter() - started
    if len(library.list(_NAMESPACE)) != len(everyone):
        wrong(f"{len(everyone)} trees were stored, the library lists {len(library.list(_NAMESPACE))}")
    name = f"{len(everyone):,} trees"
    rows = [
        Row("lookup", f"{name}, stored", f"{built / len(everyone) * 1e3:.2f} ms each", data={"seconds": built}),
        Row("lookup", f"{name}, store opened", f"{seconds * 1e3:.2f} ms", data={"seconds": seconds}),
    ]
    for kind, some in kinds.items():
        which = draw.integers(0, len(some), scale.lookups)
        rows.append(lookup_row(f"{name}, {kind}", library, [some[at] for at in which]))
    library.close()
    shutil.rmtree(folder / "store")
    return rows


def lookup_row(what: str, library: TreeLibrary, wanted: list[NDArray[np.uint32]]) -> Row:
    times, hashing = [], []
    for tokens in wanted:
        before = time.perf_counter()
        chained_hashes(tokens)
        started = time.perf_counter()
        alone = started - before
        found = library.acquire(_NAMESPACE, tokens)
        library.release(found.tree)
        times.append(time.perf_counter() - started - alone)
        hashing.append(alone)
        if found.created or found.reused != len(tokens):
            wrong(f"{what}: a stored history of {len(tokens)} tokens was not found")
    half, late, alone = quantile(times, 0.5), quantile(times, 0.99), quantile(hashing, 0.5)
    return Row(
        "lookup",
        what,
        f"{half * 1e3:.2f} ms, 99 %: {late * 1e3:.2f} ms",
        f"hashing: {alone * 1e3:.2f} ms beside",
        "median < 5 ms",
        half < 0.005,
        {"median": half, "p99": late, "hashing": alone, "lookups": len(times)},
    )


# ---- memory ---------------------------------------------------------------------------------------------------------


def measure_memory(folder: Path, scale: Scale) -> list[Row]:
    """Anonymous memory of a fresh process that holds many trees and has read all their tokens and gists by views."""
    library = TreeLibrary(folder / "held", MODEL)
    for number in range(scale.held_trees):
        first = np.array([number], dtype=np.uint32)  # or it would be one tree
        tree = library.acquire(_NAMESPACE, np.concatenate([first, token_rows(1, scale.held_tokens)])).tree
        write_gists(tree, SMALL_DIM)
        library.release(tree)
    library.close()
    with multiprocessing.get_context("spawn").Pool(1) as process:
        trees, tokens, before, opened, after = process.apply(hold_all, (folder / "held",))
    if (trees, tokens) != (scale.held_trees, scale.held_trees * scale.held_tokens):
        wrong(f"{trees} trees of {tokens} tokens were read")
    shutil.rmtree(folder / "held")
    per_token = (after - before) / tokens
    return [
        Row(
            "memory",
            f"{trees} trees of {scale.held_tokens:,} tokens, open and read",
            f"{per_token:.3f} bytes per token",
            f"{(opened - before) / MIB:.1f} MiB by opening, {(after - opened) / MIB:.1f} MiB by reading",
            "< 1 byte",
            per_token < 1,
            {"before": before, "opened": opened, "after": after, "tokens": tokens},
        )
    ]


def hold_all(store: Path) -> tuple[int, int, int, int, int]:
    """Open every tree of a store and read it; trees, tokens, RssAnon in bytes before, then with all open, then read."""
    np.arange(1 << 16, dtype=np.uint32).sum()  # what numpy takes once
    gc.collect()
    before = anonymous_bytes()
    library = TreeLibrary(store, MODEL)
    trees = [library.get(_NAMESPACE, info.tree_id) for info in library.list(_NAMESPACE)]
    opened = anonymous_bytes()
    views: list[NDArray[np.generic]] = []
    for tree in trees:
        length = tree.length
        views.append(tree.tokens(0, length))
        for level in range(1, depth(length) + 1):
            views.append(tree.gists(level, 0, tree.gist_count(level)))
    for view in views:
        view.max()
    after = anonymous_bytes()
    tokens = sum(tree.length for tree in trees)
    library.close()
    return len(trees), tokens, before, opened, after


def anonymous_bytes() -> int:
    """What of this process no file backs: the page cache that a mapping shows is not in it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("/proc/self/status has no RssAnon; this part needs Linux")
