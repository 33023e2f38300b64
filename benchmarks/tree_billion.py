"""The part of the tree benchmark with one very large tree: built, reopened, read at random."""

import os
import random
import time
from pathlib import Path

import numpy as np
from tree_data import RANGE, SMALL_DIM, Row, Scale, build_tree, gist_rows, open_tree, quantile, token_rows, wrong

from megacontext_vllm.tree.nodes import depth, num_nodes
from megacontext_vllm.tree.tree import MegaContextTree


def measure_billion(folder: Path, scale: Scale) -> list[Row]:
    """Build, reopen, read at random: first with nothing of it in the page cache, then again."""
    length, path = scale.billion_tokens, folder / "billion"
    of_tokens, of_gists = build_tree(path, length, SMALL_DIM)
    sizes = {file.name: file.stat().st_size for file in sorted(path.iterdir())}
    name, total = f"{length:,} tokens", sum(sizes.values())
    rows = [
        Row(
            "billion",
            f"{name}, built",
            f"{of_tokens + of_gists:.1f} s, {total / 1e9:.2f} GB",
            f"{depth(length)} levels of gists, d = {SMALL_DIM}, float16; gists took {of_gists:.1f} s",
            data={"seconds_tokens": of_tokens, "seconds_gists": of_gists, "bytes": sizes},
        )
    ]
    draw = random.Random(3)
    starts = [draw.randrange(length - RANGE) for _ in range(scale.random_reads)]
    levels = [draw.randint(1, depth(length)) for _ in range(scale.random_reads)]
    nodes = [(level, draw.randrange(num_nodes(length, level))) for level in levels]
    for state in ("cold", "warm"):
        if state == "cold":
            drop_from_cache(path)
        started = time.perf_counter()
        tree = open_tree(path)
        seconds = time.perf_counter() - started
        rows.append(Row("billion", f"{name}, {state}: opened", f"{seconds * 1e3:.2f} ms", data={"seconds": seconds}))
        rows.append(read_at_random(f"{name}, {state}: random ranges of {RANGE:,} tokens, checked", tree, starts))
        rows.append(read_nodes(f"{name}, {state}: random nodes, checked", tree, nodes))
        tree.close()
    return rows


def read_at_random(what: str, tree: MegaContextTree, starts: list[int]) -> Row:
    times = []
    for at in starts:
        started = time.perf_counter()
        tokens = tree.read_tokens(at, at + RANGE)
        times.append(time.perf_counter() - started)
        if not np.array_equal(tokens, token_rows(at, at + RANGE)):
            wrong(f"tokens {at} to {at + RANGE} of the large tree are not those that were written")
    return _latency(what, times)


def read_nodes(what: str, tree: MegaContextTree, nodes: list[tuple[int, int]]) -> Row:
    times = []
    for level, index in nodes:
        started = time.perf_counter()
        gist = tree.read_gists(level, index, index + 1)
        times.append(time.perf_counter() - started)
        if not np.array_equal(gist, gist_rows(level, index, index + 1, SMALL_DIM)):
            wrong(f"gist {index} of level {level} of the large tree is not the one that was written")
    return _latency(what, times)


def _latency(what: str, times: list[float]) -> Row:
    half, late = quantile(times, 0.5), quantile(times, 0.99)
    text = f"{half * 1e6:,.0f} µs, 99 %: {late * 1e6:,.0f} µs"
    return Row("billion", what, text, f"{len(times):,} in {sum(times):.1f} s", data={"median": half, "p99": late})


def drop_from_cache(path: Path) -> None:
    """Make the next read go to the disk: no root needed for one's own files, once they are written out."""
    for file in path.iterdir():
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
