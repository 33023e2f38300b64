"""Which gists to make again next, after ``begin_refresh`` or ``mark_damaged`` (``gists.py``).

Nothing is kept here that would be missed: what is done is in the version columns, so whoever comes next, after a crash
or in another process, goes on where the last one stopped. A node is offered again until ``replace_gists`` was called.
"""

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.tree.gists import stale
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.telemetry import read_column
from megacontext_vllm.tree.tree import MegaContextTree, gist_levels

Order = Literal["eager", "lazy", "hot-first"]

_HALF_LIFE_SECONDS = 86_400.0
"""An access counts half as much a day later."""
_HEAT_SECONDS = 30.0  # how long what telemetry says is believed: nodes do not cool down within a step

_Flags = NDArray[np.bool_]


class Refresh:
    """What is left to be made again, in an order:

    eager       everything, level by level from LOD1 up, each in index order
    lazy        what ``want`` named, and whatever of it below is stale, level by level
    hot-first   what was accessed most and latest (``telemetry.py``), each node after its stale descendants

    Keep the tree open meanwhile: spans may only be sealed while nobody has it. Not thread-safe.
    """

    def __init__(self, tree: MegaContextTree | Path, order: Order) -> None:
        assert order in ("eager", "lazy", "hot-first"), order
        self.folder = tree if isinstance(tree, Path) else tree.path
        self.order = order
        self._sealed = SealedSpans.of(self.folder)
        self._wanted: dict[int, _Flags] = {}
        self._heat: dict[int, NDArray[np.float32]] = {}
        self._heat_until = 0.0

    def want(self, level: int, indices: NDArray[Any] | list[int]) -> None:
        """Ask for nodes, ``[n]``, in the order "lazy". They stay asked for, also if they are not stale yet."""
        assert level >= 1
        nodes = np.asarray(indices, np.int64)
        if not len(nodes):
            return
        assert nodes.min() >= 0, nodes
        flags = self._wanted.get(level, np.zeros(0, np.bool_))
        if (size := int(nodes.max()) + 1) > len(flags):
            flags = np.concatenate([flags, np.zeros(max(size, 2 * len(flags)) - len(flags), np.bool_)])
        flags[nodes] = True
        self._wanted[level] = flags

    def next_nodes(self, max_nodes: int) -> list[tuple[int, int, int]]:
        """Up to ``max_nodes`` nodes to make now, as ``(level, start, stop)``, levels ascending, then indices.

        All 32 children of each are there and current (or sealed: as good as they will ever be). Empty if nothing is
        left, or if what is left waits for children that are still to be appended. Raises CorruptTreeError, StoreError.
        """
        assert max_nodes > 0
        due, chosen = self._due(), []
        ready = {level: np.flatnonzero(self._ready(due, level)) for level in sorted(due.asked)}
        if self.order == "hot-first":
            ready = _hottest(ready, self._inherited_heat(due), max_nodes)
        left = max_nodes
        for level, nodes in ready.items():
            offered = nodes if len(nodes) <= left else _whole_pages(nodes, left)
            chosen += [(level, start, stop) for start, stop in _runs(offered)]
            left -= len(nodes)
            if left <= 0:
                break
        return chosen

    def remaining(self) -> int:
        """Stale nodes that this order will come to, also those that must wait. Raises like ``next_nodes``."""
        return sum(int(np.count_nonzero(flags)) for flags in self._due().asked.values())

    def _due(self) -> "_Due":
        found = {level: stale(self.folder, level, self._sealed) for level in gist_levels(self.folder)}
        if self.order != "lazy":
            return _Due(found, found)
        asked: dict[int, _Flags] = {}
        for level in sorted(found, reverse=True):
            flags = np.zeros(len(found[level]), np.bool_)
            wanted = self._wanted.get(level, flags)[: len(flags)]
            flags[: len(wanted)] = wanted
            if level + 1 in asked:
                _below(flags, np.repeat(asked[level + 1], BLOCK), np.logical_or)
            asked[level] = flags & found[level]
        return _Due(found, asked)

    def _ready(self, due: "_Due", level: int) -> _Flags:
        """Which of the asked-for nodes of a level can be made now."""
        asked = due.asked[level]
        if level == 1 or not asked.any():
            return asked
        children = due.stale.get(level - 1, np.zeros(0, np.bool_))
        complete = min(len(children) // BLOCK, len(asked))
        current = np.zeros(len(asked), np.bool_)
        current[:complete] = ~children[: complete * BLOCK].reshape(-1, BLOCK).any(axis=1)
        return asked & current

    def _inherited_heat(self, due: "_Due") -> dict[int, NDArray[np.float32]]:
        """Heat of every node: its own, or that of a stale node above that waits for it."""
        if time.monotonic() >= self._heat_until:
            self._heat = {level: self._own_heat(level, len(flags)) for level, flags in due.stale.items()}
            self._heat_until = time.monotonic() + _HEAT_SECONDS
        result: dict[int, NDArray[np.float32]] = {}
        for level in sorted(due.stale, reverse=True):
            heat = np.full(len(due.stale[level]), -np.inf, np.float32)
            own = self._heat.get(level, heat)[: len(heat)]
            heat[: len(own)] = own
            if level + 1 in result:
                above = np.where(due.stale[level + 1], result[level + 1], np.float32(-np.inf))
                _below(heat, np.repeat(above, BLOCK), np.maximum)
            result[level] = heat
        return result

    def _own_heat(self, level: int, count: int) -> NDArray[np.float32]:
        """Logarithm (base 2) of the accesses, each halved for every day since the last; float32 ``[count]``.

        In days of Unix time, since how long ago it was is the same for all: float32 tells three minutes apart.
        """
        accesses = read_column(self.folder, level, "access_count", 0, count).astype(np.float32)
        last = read_column(self.folder, level, "last_access", 0, count).astype(np.float64) / _HALF_LIFE_SECONDS
        with np.errstate(divide="ignore"):
            return np.asarray(np.log2(accesses) + last.astype(np.float32), np.float32)


class _Due:
    """Stale nodes by level, and which of them the order asks for: bool ``[gists of the level]`` each."""

    def __init__(self, found: dict[int, _Flags], asked: dict[int, _Flags]) -> None:
        self.stale = found
        self.asked = asked


def _below(values: NDArray[Any], inherited: NDArray[Any], join: np.ufunc) -> None:
    """Join what nodes have with what their parents hand down; the newest may have no parent yet."""
    size = min(len(values), len(inherited))
    join(values[:size], inherited[:size], out=values[:size])


def _hottest(
    ready: dict[int, NDArray[np.int64]], heat: dict[int, NDArray[np.float32]], most: int
) -> dict[int, NDArray[np.int64]]:
    """The ``most`` hottest of the nodes; lower levels, then lower indices first among equals."""
    heats = np.concatenate([heat[level][nodes] for level, nodes in ready.items()] or [np.zeros(0, np.float32)])
    if len(heats) <= most:
        return ready
    limit = np.partition(heats, len(heats) - most)[len(heats) - most]
    chosen = heats > limit
    equal = np.flatnonzero(heats == limit)
    chosen[equal[: most - np.count_nonzero(chosen)]] = True
    result, at = {}, 0
    for level, nodes in ready.items():
        result[level] = nodes[chosen[at : at + len(nodes)]]
        at += len(nodes)
    return result


def _whole_pages(nodes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most ``most`` of the nodes. No siblings are parted if that leaves any: their rows share a checksum page."""
    parted = nodes[:most]
    whole = parted[parted // BLOCK < nodes[most] // BLOCK]
    return whole if len(whole) else parted


def _runs(nodes: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Ascending nodes as ``(start, stop)``."""
    if not len(nodes):
        return []
    cuts = np.flatnonzero(np.diff(nodes) != 1) + 1
    starts, stops = nodes[np.r_[0, cuts]], nodes[np.r_[cuts - 1, len(nodes) - 1]] + 1
    return list(zip(starts.tolist(), stops.tolist()))
