"""Which stored trees share the longest prefix with a history, exact to the token."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError, UnknownTreeError
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.prefix_hash import ANCHOR
from megacontext_vllm.tree.tree import MegaContextTree

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 64
"""Trees compared per anchor, the last used first. Thousands may share a system prompt; the bound costs at most some
reuse behind the last common anchor, never correctness."""

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Match:
    """A tree and how many leading tokens it shares with the history."""

    tree_id: str
    common: int
    length: int


def common_prefix(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> int:
    """Number of equal leading tokens of two uint32 arrays ``[n]`` and ``[m]``."""
    end = min(len(left), len(right))
    for start in range(0, end, _CHUNK):  # in chunks: most candidates differ early
        differs = left[start : min(start + _CHUNK, end)] != right[start : min(start + _CHUNK, end)]
        if differs.any():
            return start + int(differs.argmax())
    return end


def longest_matches(
    index: TreeIndex,
    namespace: str,
    tokens: NDArray[np.uint32],
    hashes: Sequence[bytes],
    peek: Callable[[str, str], AbstractContextManager[MegaContextTree]],
) -> list[Match]:
    """Trees of ``namespace`` with the longest common prefix, all of the same length, at least ``ANCHOR`` tokens.

    ``tokens``: uint32 ``[n]``; ``hashes``: its chain; ``peek(namespace, tree_id)`` opens a tree for reading. Trees
    that vanished or are damaged are logged and leave the index; any other failure only skips the tree this time.
    """
    best: list[Match] = []
    seen: set[str] = set()
    while True:
        # The index may promise more than the files hold: step back until what was verified is as good as the promise.
        reach = index.deepest(namespace, hashes)
        if reach * ANCHOR <= (best[0].common if best else 0):
            return best
        for tree_id in index.with_anchor(namespace, hashes[reach - 1], MAX_CANDIDATES):
            if tree_id in seen:
                continue
            seen.add(tree_id)
            try:
                with peek(namespace, tree_id) as tree:
                    length = tree.length
                    match = Match(tree_id, common_prefix(tree.tokens(0, length), tokens), length)
            except StoreError as error:
                logger.warning("tree %s is skipped: %s", tree_id, error)
                if isinstance(error, UnknownTreeError | CorruptTreeError | FingerprintMismatchError):
                    index.remove(namespace, tree_id)
                continue
            if match.common >= ANCHOR and (not best or match.common >= best[0].common):
                best = [m for m in best if m.common == match.common] + [match]
        hashes = hashes[: reach - 1]
