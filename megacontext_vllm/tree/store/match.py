"""Which stored trees share the longest prefix with a history, exact to the token."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError, UnknownTreeError
from megacontext_vllm.tree.files.header import COUNT_BYTES, COUNT_OFFSET, HEADER_BYTES, unpack_count
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.prefix_hash import ANCHOR
from megacontext_vllm.tree.tree import TOKENS, MegaContextTree

logger = logging.getLogger(__name__)

MAX_CANDIDATES = 64
"""Trees looked at per anchor, the last used first. Thousands may share a system prompt; the bound costs at most some
reuse behind the last common anchor, never correctness."""

_CHUNK = 64 * ANCHOR
_ENOUGH = 4
_LOOK = (sys.maxsize, True)
"""Promise of a tree that has to be opened to know, or to say what is wrong with it."""


@dataclass(frozen=True)
class Match:
    """A tree and how many leading tokens it shares with the history."""

    tree_id: str
    common: int
    length: int


def common_prefix(left: NDArray[np.uint32], right: NDArray[np.uint32]) -> int:
    """Number of equal leading tokens of two uint32 arrays ``[n]`` and ``[m]``."""
    end = min(len(left), len(right))
    for start in range(0, end, _CHUNK):  # in chunks: many differ early
        differs = left[start : min(start + _CHUNK, end)] != right[start : min(start + _CHUNK, end)]
        if differs.any():
            return start + int(differs.argmax())
    return end


def common_with(
    tree: MegaContextTree, length: int, tokens: NDArray[np.uint32], hashes: Sequence[bytes], known: int = 0
) -> int:
    """Leading tokens that the first ``length`` of ``tree`` share with ``tokens``, uint32 ``[n]``, as far as is sure.

    ``known``: how many are known to be equal, from an earlier look at this tree; they are not compared again.
    Over a sealed span the stored hashes are compared with those of ``tokens`` (``hashes``), and the common prefix can
    only end at an anchor. It also ends where tokens cannot be read: what was read before is as good as ever.
    """
    end = min(length, len(tokens))
    at = known
    for span in tree.sealed.overlapping(known, end) if tree.sealed else ():
        at = _common_raw(tree, tokens, at, span.start)
        if at < span.start:
            return at
        first = span.start // ANCHOR
        expected = hashes[first : span.stop // ANCHOR]
        equal = next((k for k, pair in enumerate(zip(span.hashes, expected)) if pair[0] != pair[1]), None)
        if equal is None:
            equal = min(len(span.hashes), len(expected))
        at = span.start + equal * ANCHOR
        if at < span.stop:
            return min(at, end)
    return _common_raw(tree, tokens, at, end)


def _common_raw(tree: MegaContextTree, tokens: NDArray[np.uint32], start: int, stop: int) -> int:
    """Where, from ``start`` on, ``tokens`` and the tree's raw tokens differ first; ``stop`` if they do not."""
    size = _CHUNK
    while start < stop:
        end = min(stop, (start // size + 1) * size)
        try:
            common = common_prefix(tree.read_tokens(start, end), tokens[start:end])
        except StoreError as error:
            if size > ANCHOR:  # page by page, for those before the damage
                size = ANCHOR
                continue
            logger.warning("tree %s is used up to token %d only: %s", tree.tree_id, start, error)
            return start
        if start + common < end:
            return start + common
        start = end
    return stop


def longest_matches(
    index: TreeIndex,
    namespace: str,
    tokens: NDArray[np.uint32],
    hashes: Sequence[bytes],
    peek: Callable[[str, str], AbstractContextManager[MegaContextTree]],
    folder: Path,
) -> list[Match]:
    """Trees of ``namespace`` with the longest common prefix, all of the same length, at least ``ANCHOR`` tokens.

    ``tokens``: uint32 ``[n]``; ``hashes``: its chain; ``peek(namespace, tree_id)`` opens a tree for reading, ``folder``
    is where the trees of the namespace lie. Of trees that are equally good to fork only one is returned. Trees that
    vanished or are damaged are logged and leave the index; any other failure only skips the tree this time.
    """
    best: list[Match] = []
    seen: set[str] = set()
    while True:
        # The index may promise more than the files hold: step back until what was verified is as good as the promise.
        reach = index.deepest(namespace, hashes)
        if reach * ANCHOR <= (best[0].common if best else 0):
            return best
        found = [t for t in index.with_anchor(namespace, hashes[reach - 1], MAX_CANDIDATES) if t not in seen]
        usable = 0
        for promise, tree_id in _by_promise(found, folder, reach * ANCHOR, tokens):
            # The best come first. Of those that can only be forked one will do, and of the others a few.
            worthwhile = promise[1] and usable < _ENOUGH
            if best and (promise[0] < best[0].common or (promise[0] == best[0].common and not worthwhile)):
                break
            seen.add(tree_id)
            try:
                with peek(namespace, tree_id) as tree:
                    length = tree.length
                    match = Match(tree_id, common_with(tree, length, tokens, hashes), length)
            except StoreError as error:
                logger.warning("tree %s is skipped: %s", tree_id, error)
                if isinstance(error, UnknownTreeError | CorruptTreeError | FingerprintMismatchError):
                    index.remove(namespace, tree_id)
                continue
            if match.common >= ANCHOR and (not best or match.common >= best[0].common):
                best = [m for m in best if m.common == match.common] + [match]
                usable = sum(m.common in (len(tokens), m.length) for m in best)
        hashes = hashes[: reach - 1]


def _by_promise(
    tree_ids: list[str], folder: Path, start: int, tokens: NDArray[np.uint32]
) -> list[tuple[tuple[int, bool], str]]:
    """Sort trees that share ``start`` tokens with a history by what a glance at the next page promises, best first.

    A promise: how many leading tokens are common, and whether the tree could be used as it is or extended. It is a hint
    that costs a fraction of opening the tree.
    """
    if len(tree_ids) == 1:
        return [(_LOOK, tree_ids[0])]
    page = tokens[start : start + ANCHOR]
    promises = [(_glance(f"{folder}/{tree_id}/{TOKENS}", start, page, len(tokens)), tree_id) for tree_id in tree_ids]
    return sorted(promises, key=lambda pair: pair[0], reverse=True)


def _glance(file: str, start: int, page: NDArray[np.uint32], asked: int) -> tuple[int, bool]:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            count = unpack_count(os.pread(fd, COUNT_BYTES, COUNT_OFFSET))
            rows = np.frombuffer(os.pread(fd, page.nbytes, HEADER_BYTES + start * page.itemsize), "<u4")
        finally:
            os.close(fd)
    except (OSError, ValueError):
        return _LOOK
    if count is None or count < start:
        return _LOOK
    common = common_prefix(rows[: count - start], page)
    if common == ANCHOR:  # the index lacks an anchor, so there may be more
        return _LOOK
    return start + common, start + common in (asked, count)
