"""What the tests of the library share: histories that have a known part in common, and a store to put them in."""

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.holes import punch
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gists import append_gists
from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.store.library import Acquired, TreeLibrary
from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes
from megacontext_vllm.tree.tree import MegaContextTree

MODEL, OTHER_MODEL = bytes(range(16)), bytes(range(1, 17))
GIST = bytes(range(100, 116))
BASE = np.random.default_rng(0).integers(0, 150_000, 10_000, dtype=np.uint32)
WIDTH = 8
"""Of the gists here, in float16."""


def put(library: TreeLibrary, tokens: NDArray[np.uint32], namespace: str = "default") -> str:
    """Store a history, as a finished request leaves it."""
    acquired = library.acquire(namespace, tokens)
    library.release(acquired.tree)
    return acquired.tree.tree_id


def diverging(common: int, length: int) -> NDArray[np.uint32]:
    tokens = BASE[:length].copy()
    tokens[common:] += 1
    return tokens


def check(acquired: Acquired, tokens: NDArray[np.uint32]) -> None:
    assert acquired.tree.length >= len(tokens)
    np.testing.assert_array_equal(acquired.tree.tokens(0, len(tokens)), tokens)


def gist_header(level: int, net: bytes = GIST, model: bytes = MODEL) -> Header:
    return Header(level, RowType.FLOAT16, WIDTH, 0, model, net)


def gist_rows(level: int, start: int, stop: int) -> NDArray[np.float16]:
    """Gists ``[start, stop)`` of a level, float16 ``[n, WIDTH]``, every one different from the others nearby."""
    values = np.arange(start * WIDTH, stop * WIDTH, dtype=np.int64) % 2000 + 1
    return (values.reshape(-1, WIDTH) / 2 + level).astype(np.float16)


def add_gists(tree: MegaContextTree) -> None:
    """Make all gists that the tree does not have."""
    for level in range(1, depth(tree.length) + 1):
        start, stop = tree.gist_count(level), num_nodes(tree.length, level)
        header = gist_header(level, model=tree.model_fingerprint)
        append_gists(tree.gist_path(level), header, start, gist_rows(level, start, stop))


def seal(folder: Path, *nodes: tuple[int, int], lost: bool = False) -> None:
    """Take the tokens and lower gists of some nodes ``(level, index)`` out of a closed tree, as curation does.

    ``lost``: as damage does, so that the hashes are gone too.
    """
    hashes = chained_hashes(np.fromfile(folder / "LOD0.ctx", np.uint32, offset=64))
    spans = []
    for level, index in nodes:
        start, stop = index * BLOCK**level, (index + 1) * BLOCK**level
        kept = () if lost else tuple(hashes[start // ANCHOR : stop // ANCHOR])
        spans.append(SealedSpan(level, index, "lost" if lost else "compacted", kept, None))
        for below in range(level):
            file = folder / f"LOD{below}.ctx"
            if not file.exists():
                continue
            reader = LevelReader(file)
            header, count = reader.header, reader.count
            reader.close()
            first, last = start // BLOCK**below, min(stop // BLOCK**below, count)
            fd = os.open(file, os.O_RDWR)
            punch(fd, header.file_bytes(first), max(last - first, 0) * header.row_bytes)
            os.close(fd)
    SealedSpans([*SealedSpans.of(folder), *spans]).save(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Committed rows of every level of a tree, checked if they are not sealed, and all else it says; by file name."""
    found = {}
    sealed = SealedSpans.of(folder)
    for file in sorted(folder.iterdir()):
        if file.suffix == ".ctx":
            reader = LevelReader(file)
            width, count = BLOCK**reader.header.level, reader.count
            for start, stop in sealed.runs(0, count * width):
                reader.read(start // width, stop // width)
            found[file.name] = reader.header.pack() + reader.rows(0, count).tobytes()
            reader.close()
        elif file.suffix == ".col" or file.name in ("sealed.json", "gists.json"):
            found[file.name] = file.read_bytes()
    return found
