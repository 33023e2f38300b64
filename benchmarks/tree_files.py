"""The parts of the tree benchmark that are about one tree: appending, reading, opening."""

import random
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tree_data import (
    MIB,
    RANGE,
    SMALL_DIM,
    Row,
    Scale,
    build_tree,
    gist_header,
    gist_rows,
    medians,
    new_tree,
    open_tree,
    quantile,
    race,
    token_rows,
    wrong,
)

from megacontext_vllm.tree.files.header import HEADER_BYTES
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.tree import TOKENS

CHUNKS = (32, 1024, 65_536, 1_048_576)  # tokens; a gist covers 32
LARGE = 65_536
GIST_DIM = 576
_MOST_APPENDS = 20_000
Appended = NDArray[np.uint32] | NDArray[np.float16]


# ---- append ---------------------------------------------------------------------------------------------------------


def measure_append(folder: Path, scale: Scale) -> list[Row]:
    """Chunk by chunk into a tree; into a np.memmap that has its final size; and into one that grows by each chunk."""
    tokens = token_rows(0, scale.race_bytes // 4)
    gists = gist_rows(1, 0, scale.race_bytes // (2 * GIST_DIM), GIST_DIM)
    rows = [append_row("tokens", folder, tokens, chunk, chunk, scale.repeat) for chunk in CHUNKS]
    return rows + [append_row("gists", folder, gists, chunk // 32, chunk, scale.repeat) for chunk in CHUNKS]


def append_row(kind: str, folder: Path, data: Appended, step: int, chunk: int, repeat: int) -> Row:
    """``step``: rows of one append, which are ``chunk`` tokens or the gists of so many."""
    data = data[: step * max(min(len(data) // step, _MOST_APPENDS), 1)]
    chunks = [data[at : at + step] for at in range(0, len(data), step)]
    into_tree = append_tokens if kind == "tokens" else append_gists
    contenders: dict[str, Callable[[], float]] = {
        "tree": lambda: into_tree(folder / "appended", data, chunks),
        "memmap": lambda: append_memmap(folder / "appended.bin", data, chunks, grow=False),
        "growing": lambda: append_memmap(folder / "appended.bin", data, chunks, grow=True),
    }
    seconds = race(contenders, repeat)
    found = medians(seconds)
    ratio, of_growing = found["memmap"] / found["tree"], found["growing"] / found["tree"]
    each = f"{found['tree'] / len(chunks) * 1e6:,.0f} µs each, " if len(chunks) > 100 else ""
    return Row(
        "append",
        f"{kind}, {chunk:,} tokens at a time",
        f"{each}{data.nbytes / MIB / found['tree']:,.0f} MiB/s",
        f"{ratio:.2f} of np.memmap, {of_growing:.2f} of a growing one",
        "≥ 0.7" if chunk >= LARGE else "",
        ratio >= 0.7 if chunk >= LARGE else None,
        {"bytes": data.nbytes, "appends": len(chunks), "ratio": ratio, "ratio_growing": of_growing, "seconds": seconds},
    )


def append_tokens(path: Path, data: Appended, chunks: list[Any]) -> float:
    tree = new_tree(path)
    try:
        started = time.perf_counter()
        for chunk in chunks:
            tree.append(chunk)
        seconds = time.perf_counter() - started
        if not np.array_equal(tree.read_tokens(0, tree.length), data):
            wrong("the tree does not hold the tokens that were appended")
    finally:
        tree.close()
        shutil.rmtree(path)
    return seconds


def append_gists(path: Path, data: Appended, chunks: list[Any]) -> float:
    path.mkdir()
    try:
        with LevelWriter(path / "LOD1.ctx", gist_header(1, data.shape[1])) as writer:
            started = time.perf_counter()
            for chunk in chunks:
                writer.append(chunk)
            seconds = time.perf_counter() - started
        reader = LevelReader(path / "LOD1.ctx")
        if not np.array_equal(reader.read(0, reader.count), data):
            wrong("the level does not hold the gists that were appended")
        reader.close()
    finally:
        shutil.rmtree(path)
    return seconds


def append_memmap(path: Path, data: Appended, chunks: list[Any], grow: bool) -> float:
    """``grow``: each chunk extends the file and maps only the new part, the cheapest that np.memmap has for it."""
    try:
        if grow:
            path.touch()
        else:
            whole = np.memmap(path, data.dtype, "w+", shape=data.shape)
        started = time.perf_counter()
        at = 0
        for chunk in chunks:
            if grow:
                part = np.memmap(path, data.dtype, "r+", offset=at * data[:1].nbytes, shape=chunk.shape)
                part[:] = chunk
            else:
                whole[at : at + len(chunk)] = chunk
            at += len(chunk)
        seconds = time.perf_counter() - started
        if not np.array_equal(np.fromfile(path, data.dtype).reshape(data.shape), data):
            wrong("np.memmap does not hold what was copied into it")
    finally:
        path.unlink()
    return seconds


# ---- read -----------------------------------------------------------------------------------------------------------


def measure_read(folder: Path, scale: Scale) -> list[Row]:
    """Summed views and checked copies of a tree, against a np.memmap of the very same file."""
    length = scale.read_tokens
    build_tree(folder / "read", length, SMALL_DIM)
    tree = open_tree(folder / "read")
    plain = np.memmap(folder / "read" / TOKENS, np.uint32, "r", offset=HEADER_BYTES, shape=(length,))
    draw = random.Random(2)
    starts = [draw.randrange(length - RANGE) for _ in range(_MOST_APPENDS)]
    orders = {
        "in order, 1,048,576 tokens at a time": [(at, min(at + (1 << 20), length)) for at in range(0, length, 1 << 20)],
        f"random ranges of {RANGE:,} tokens": [(at, at + RANGE) for at in starts],
    }
    if not np.array_equal(tree.read_tokens(0, length), token_rows(0, length)):
        wrong("the tree does not hold the tokens that were written")
    ways: dict[str, tuple[Callable[[int, int], Any], Callable[[int, int], Any], bool]] = {
        "views, summed": (lambda a, b: tree.tokens(a, b).sum(), lambda a, b: plain[a:b].sum(), True),
        "checked copies": (tree.read_tokens, lambda a, b: np.array(plain[a:b]), False),
    }
    try:
        return [
            read_row(f"{way}, {order}", ours, theirs, ranges, scale.repeat, has_goal)
            for way, (ours, theirs, has_goal) in ways.items()
            for order, ranges in orders.items()
        ]
    finally:
        tree.close()
        shutil.rmtree(folder / "read")


def read_row(
    what: str,
    ours: Callable[[int, int], Any],
    theirs: Callable[[int, int], Any],
    ranges: list[tuple[int, int]],
    repeat: int,
    has_goal: bool,
) -> Row:
    for at, end in ranges[:100]:  # this also brings the pages into both mappings' reach
        if not np.array_equal(ours(at, end), theirs(at, end)):
            wrong(f"{what}: tokens {at} to {end} differ between the tree and np.memmap")
    for way in (ours, theirs):
        go_through(way, ranges)
    seconds = race(
        {"tree": lambda: go_through(ours, ranges), "memmap": lambda: go_through(theirs, ranges)}, max(repeat, 5)
    )
    found = medians(seconds)
    ratio, total = found["memmap"] / found["tree"], sum(end - at for at, end in ranges) * 4
    each = f"{found['tree'] / len(ranges) * 1e6:,.1f} µs each, " if len(ranges) > 1000 else ""
    return Row(
        "read",
        what,
        f"{each}{total / MIB / found['tree']:,.0f} MiB/s",
        f"{ratio:.2f} of np.memmap",
        "≥ 0.9" if has_goal else "",
        ratio >= 0.9 if has_goal else None,
        {"bytes": total, "reads": len(ranges), "ratio": ratio, "seconds": seconds},
    )


def go_through(way: Callable[[int, int], Any], ranges: list[tuple[int, int]]) -> float:
    started = time.perf_counter()
    for at, end in ranges:
        way(at, end)
    return time.perf_counter() - started


# ---- open -----------------------------------------------------------------------------------------------------------


def measure_open(folder: Path, scale: Scale) -> list[Row]:
    """From nothing to the view of the last token, of trees with gists at every level, all in the page cache."""
    paths = {length: folder / f"open-{length}" for length in scale.open_tokens}
    for length, path in paths.items():
        build_tree(path, length, SMALL_DIM)
    rows = []
    for writable in (False, True):
        contenders: dict[str, Callable[[], float]] = {
            str(length): partial(open_once, path, length, writable) for length, path in paths.items()
        }
        for name, times in race(contenders, scale.opens).items():
            half, most = quantile(times, 0.5), max(times)
            rows.append(
                Row(
                    "open",
                    f"{int(name):,} tokens, {'to write' if writable else 'to read'}",
                    f"{half * 1e3:.2f} ms, at most {most * 1e3:.2f} ms",
                    f"of {len(times)}",
                    "< 50 ms",
                    most < 0.05,
                    {"tokens": int(name), "writable": writable, "seconds": times},
                )
            )
    for path in paths.values():
        shutil.rmtree(path)
    return rows


def open_once(path: Path, length: int, writable: bool) -> float:
    started = time.perf_counter()
    tree = open_tree(path, writable)
    last = tree.tokens(length - 1, length)
    seconds = time.perf_counter() - started
    if last[0] != token_rows(length - 1, length)[0] or tree.writable != writable:
        wrong(f"{path.name} was not opened as it should")
    tree.close()
    return seconds
