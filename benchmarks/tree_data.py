"""What the parts of the tree benchmark have in common: synthetic trees, fair races, rows of the report."""

import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.nodes import depth, num_nodes
from megacontext_vllm.tree.tree import MegaContextTree

MODEL = bytes(range(16))
GISTNET = bytes(range(16, 32))
MIB = 1 << 20
SMALL_DIM = 8
"""Width of the gists where it is the tokens that matter."""
RANGE = 1024
"""Tokens of a random read."""
_AT_ONCE = 1 << 22  # rows that are generated and written together


@dataclass(frozen=True)
class Scale:
    """How much of everything. ``race_bytes``: what is copied in one heat of a race."""

    repeat: int
    race_bytes: int
    read_tokens: int
    open_tokens: tuple[int, ...]
    opens: int
    trees: int
    lookups: int
    held_trees: int
    held_tokens: int
    billion_tokens: int
    random_reads: int


@dataclass
class Row:
    """One line of the report. ``met``: whether the goal was reached, None where there is none."""

    part: str
    what: str
    result: str
    compared: str = ""
    goal: str = ""
    met: bool | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """As one line of JSON."""
        return json.dumps(asdict(self))


def wrong(what: str) -> NoReturn:
    """A fast way to a wrong result is no result."""
    raise SystemExit(f"nothing is reported: {what}")


# ---- races ----------------------------------------------------------------------------------------------------------


def race(contenders: dict[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    """Seconds of each contender, by name. A contender returns its own time: what it prepares and checks is not in it.

    They take turns, in an order drawn anew for every heat, so that what else the machine does falls on all of them.
    """
    order = list(contenders)
    draw = random.Random(1)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeat):
        draw.shuffle(order)
        for name in order:
            seconds[name].append(contenders[name]())
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(times) for name, times in seconds.items()}


def quantile(values: list[float], share: float) -> float:
    """The value that ``share`` of them do not exceed."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


# ---- synthetic trees ------------------------------------------------------------------------------------------------


def token_rows(start: int, stop: int) -> NDArray[np.uint32]:
    """Tokens ``[start, stop)`` of the synthetic tree: each follows from its position, and they look random."""
    return np.arange(start, stop, dtype=np.uint32) * np.uint32(2654435761)


def gist_rows(level: int, start: int, stop: int, dim: int) -> NDArray[np.float16]:
    """Gists ``[start, stop)`` of a level, float16 ``[n, dim]``; whole numbers below 2,048, exact in float16."""
    index = (np.arange(start, stop, dtype=np.uint64) * np.uint64(2654435761) >> np.uint64(7)).astype(np.uint32)
    return ((index[:, None] + np.arange(dim, dtype=np.uint32) + np.uint32(level)) % np.uint32(2048)).astype(np.float16)


def gist_header(level: int, dim: int) -> Header:
    return Header(level, RowType.FLOAT16, dim, 0, MODEL, GISTNET)


def new_tree(path: Path) -> MegaContextTree:
    return MegaContextTree.create(path, tree_id=path.name, namespace="default", model_fingerprint=MODEL)


def open_tree(path: Path, writable: bool = False) -> MegaContextTree:
    return MegaContextTree.open(path, model_fingerprint=MODEL, writable=writable)


def build_tree(path: Path, length: int, dim: int) -> tuple[float, float]:
    """Write a tree with gists for every complete node; seconds for its tokens and for its gists, made-up data included.

    ``dim``: width of its float16 gists.
    """
    with_tokens = time.perf_counter()
    tree = new_tree(path)
    try:
        for start in range(0, length, _AT_ONCE):
            tree.append(token_rows(start, min(start + _AT_ONCE, length)))
        with_gists = time.perf_counter()
        write_gists(tree, dim)
        return with_gists - with_tokens, time.perf_counter() - with_gists
    finally:
        tree.close()


def write_gists(tree: MegaContextTree, dim: int) -> None:
    """Give every complete node of a tree its made-up gist."""
    length = tree.length
    for level in range(1, depth(length) + 1):
        count = num_nodes(length, level)
        with LevelWriter(tree.gist_path(level), gist_header(level, dim)) as writer:
            for start in range(0, count, _AT_ONCE):
                writer.append(gist_rows(level, start, min(start + _AT_ONCE, count), dim))
