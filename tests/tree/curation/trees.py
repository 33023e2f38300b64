"""What the tests of curation share: trees with tokens and gists of all levels, their plans, and what they must hold."""

import hashlib
import uuid
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files.levels import GIST, MODEL, made
from numpy.typing import NDArray

from megacontext_vllm.errors import SealedSpanError
from megacontext_vllm.tree.curation.actions import Action, CurationPlan
from megacontext_vllm.tree.curation.policy import CurationPolicy
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.files.level_reader import read_count
from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes, span
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.store.prefix_hash import chained_hashes
from megacontext_vllm.tree.tree import MegaContextTree

TREE_ID = "0123456789abcdef" * 2
DAY = 86_400.0
ANYTHING = CurationPolicy(protect_head_tokens=0, protect_tail_tokens=0)
"""Protects nothing."""
GISTS = Header(1, RowType.FLOAT16, 16, 0, MODEL, GIST)


def tokens_of(start: int, stop: int) -> NDArray[np.uint32]:
    return (np.arange(start, stop, dtype=np.uint64) * 2_654_435_761 % 150_000 + 1).astype(np.uint32)


def gists_of(level: int, start: int, stop: int) -> NDArray[np.float16]:
    rows: NDArray[np.float16] = (made(replace(GISTS, dtype=RowType.BFLOAT16), start, stop, level) % 2048).astype("<f2")
    return rows


def folder_of(store: Path, tree_id: str = TREE_ID) -> Path:
    return store / "trees" / "default" / tree_id


def grow(tree: MegaContextTree, length: int) -> None:
    """Append up to ``length`` tokens, and the gists of all complete nodes."""
    tree.append(tokens_of(tree.length, length))
    for level in range(1, depth(length) + 1):
        start = read_count(tree.gist_path(level))
        header = replace(GISTS, level=level)
        write_rows(tree.gist_path(level), header, start, gists_of(level, start, num_nodes(length, level)))


def new_tree(store: Path, length: int, tree_id: str = TREE_ID) -> Path:
    """A closed tree; returns its folder."""
    folder = folder_of(store, tree_id)
    with closing(
        MegaContextTree.create(folder, tree_id=tree_id, namespace="default", model_fingerprint=MODEL)
    ) as tree:
        grow(tree, length)
    return folder


def opened(folder: Path, writable: bool = False) -> "closing[MegaContextTree]":
    return closing(MegaContextTree.open(folder, model_fingerprint=MODEL, writable=writable))


def compaction(level: int, index: int) -> Action:
    return Action("compact", *span(level, index), "a test", 0, level, index, uuid.uuid4().hex)


def plan_of(folder: Path, actions: Iterable[Action], policy: CurationPolicy = ANYTHING) -> CurationPlan:
    length = read_count(folder / "LOD0.ctx")
    created = folder.joinpath("LOD0.ctx").stat().st_mtime + 1
    return CurationPlan("default", folder.name, created, length, policy, tuple(actions))


def fingerprints(folder: Path) -> dict[str, str]:
    """Every file of a tree that holds rows or says what they are, and what is in it."""
    files = [*folder.glob("*.ctx"), *folder.glob("*.crc"), *folder.glob("*.col"), *folder.glob("*.json")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.name != "sealed.json"}


def check(folder: Path, sealed: Iterable[tuple[int, int]] | None = None) -> None:
    """Everything that is not sealed is right and readable; what is, says so, and has its gist and its hashes.

    ``sealed``: the nodes that must be, in order; None for any.
    """
    with opened(folder) as tree:
        if sealed is not None:
            assert [(item.level, item.index) for item in tree.sealed] == list(sealed)
        length = tree.length
        hashes = chained_hashes(tokens_of(0, length))
        for start, stop in tree.sealed.runs(0, length):
            np.testing.assert_array_equal(tree.read_tokens(start, stop), tokens_of(start, stop))
            np.testing.assert_array_equal(tree.tokens(start, stop), tokens_of(start, stop))
        for item in tree.sealed:
            with pytest.raises(SealedSpanError):
                tree.tokens(item.start, item.stop)
            with pytest.raises(SealedSpanError):
                tree.read_gists(item.level - 1, item.index * BLOCK, item.index * BLOCK + 1)
            assert item.hashes == tuple(hashes[item.start // 1024 : item.stop // 1024])
        for level in tree.gist_levels():
            for first in range(0, tree.gist_count(level), BLOCK):  # siblings are hidden together
                if not tree.sealed.hides(level, first):
                    stop = min(first + BLOCK, tree.gist_count(level))
                    np.testing.assert_array_equal(tree.read_gists(level, first, stop), gists_of(level, first, stop))


def sealed_nodes(folder: Path) -> list[tuple[int, int]]:
    return [(item.level, item.index) for item in SealedSpans.of(folder)]
