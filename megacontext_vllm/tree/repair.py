"""Mend a damaged tree: keep everything that is sound, never pass off what is not.

Gists are derived, so damaged ones are let go from the first damage on and made again with the next use of the tree.
Damaged tokens cannot be made again from the tree. Where a donor has them (another tree with the same history), they are
copied back; else their runs of 1,024 are sealed as *lost*: what is before and behind them stays, they are never shown.
A damaged end is cut off.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files.checksums import write_all
from megacontext_vllm.tree.files.header import HEADER_BYTES, level_path
from megacontext_vllm.tree.files.level_reader import read_count
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.files.mend import cut_level, rebuild_checksums, remove_level
from megacontext_vllm.tree.nodes import BLOCK, num_nodes
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.tree import TOKENS, gist_levels
from megacontext_vllm.tree.verify import NO_CHECKSUM, Damage, Progress, Verified, verify_tree

_RUN = BLOCK * BLOCK

Donor = Callable[[int, int], NDArray[np.uint32] | None]
"""Asked for tokens ``[start, stop)``: uint32 ``[n]`` that are known to be the right ones, or None."""


@dataclass
class Repaired:
    """What was done. Spans are of tokens, ``[start, stop)``."""

    before: Verified
    length: int = 0
    copied_back: list[tuple[int, int]] = field(default_factory=list)
    lost: list[tuple[int, int]] = field(default_factory=list)
    cut_off: tuple[int, int] | None = None
    gists_dropped: dict[int, int] = field(default_factory=dict)
    """Level to the row from which its gists will be made again."""


def repair_tree(
    path: Path, *, donor: Donor | None = None, trust: bool = False, progress: Progress | None = None
) -> Repaired:
    """Mend the tree in folder ``path``, which nobody may have open.

    ``trust``: where LOD0 has lost its checksums altogether, or has them in another version's form, take its tokens as
    they are. Raises TreeInUseError; CorruptTreeError where nothing can be saved (``meta.json`` or the header of LOD0 is
    damaged) and where ``trust`` is needed; StoreError. Then nothing is changed, nor is it in a sound tree.
    """
    with claim(path):
        if trust:
            rebuild_checksums(path / TOKENS, only_if_lost=True)
        done = Repaired(verify_tree(path, progress))
        done.length = done.before.length
        tokens = [item for item in done.before.damage if item.level == 0]
        if any(item.reason == NO_CHECKSUM for item in tokens):
            raise CorruptTreeError(
                f"{path / TOKENS} has no checksums of this version, so that nothing says whether its tokens are right. "
                "To take them as they are: megacontext tree repair --trust"
            )
        if any(item.stop is None for item in tokens):
            reasons = "; ".join(item.reason for item in tokens if item.stop is None)
            raise CorruptTreeError(f"{path} cannot be repaired: {reasons}. Import a copy, or delete the tree")
        for level in gist_levels(path):
            _mend_level(path, level, [item for item in done.before.damage if item.level == level], done)
        if tokens:
            _mend_tokens(path, tokens, donor, done)
        return done


def _mend_level(path: Path, level: int, damage: list[Damage], done: Repaired) -> None:
    if not damage:
        return
    file = level_path(path, level)
    whole = any(item.stop is None for item in damage)
    first = 0 if whole else min(item.start for item in damage) // BLOCK * BLOCK
    done.gists_dropped[level] = first
    if first == 0:
        remove_level(file)
    else:
        cut_level(file, first)


def _mend_tokens(path: Path, damage: list[Damage], donor: Donor | None, done: Repaired) -> None:
    file = path / TOKENS
    sealed = list(SealedSpans.of(path))
    end = done.length
    for part in damage:
        assert part.stop is not None
        for start in range(part.start // _RUN * _RUN, min(part.stop, done.length), _RUN):
            stop = min(start + _RUN, done.length)
            right = donor(start, stop) if donor is not None else None
            if right is not None:
                _write_tokens(file, start, right)
                done.copied_back.append((start, stop))
            elif stop - start == _RUN and stop < done.length:
                sealed.append(SealedSpan(2, start // _RUN, "lost"))
                done.lost.append((start, stop))
            else:  # the end of the history: nothing behind it would be saved by sealing it
                end = min(end, start)
    # A lost run at the very end is no use either, nor is a span of which a part is cut off.
    for item in sorted(sealed, key=lambda item: item.start, reverse=True):
        if item.stop > end or (item.stop == end and item.kind == "lost"):
            end = min(end, item.start)
    sealed = [item for item in sealed if item.stop <= end]
    done.lost = [span for span in done.lost if span[1] <= end]
    try:
        if sealed != list(SealedSpans.of(path)):
            SealedSpans(sealed).save(path)
    except OSError as error:
        raise StoreError(f"cannot repair {path}: {error.strerror}") from error
    if end < done.length:
        done.cut_off = (end, done.length)
    cut_level(file, end)
    done.length = end
    for level in gist_levels(path):
        if num_nodes(end, level) < done.gists_dropped.get(level, 1 << 62):
            _cut_gists(path, level, num_nodes(end, level), done)


def _cut_gists(path: Path, level: int, count: int, done: Repaired) -> None:
    file = level_path(path, level)
    if read_count(file) > count:
        cut_level(file, count)
        done.gists_dropped[level] = count


def _write_tokens(file: Path, start: int, tokens: NDArray[np.uint32]) -> None:
    try:
        fd = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        try:
            write_all(fd, np.ascontiguousarray(tokens, "<u4").data, HEADER_BYTES + 4 * start)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise StoreError(f"cannot repair {file}: {error.strerror}") from error
