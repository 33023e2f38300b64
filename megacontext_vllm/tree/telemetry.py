"""What happened to the nodes of a tree, in columns beside its levels (``files/columns.py``). For curation and refresh.

created, last_access            Unix seconds, uint32
access_count, expand_count, collapse_count, sensitivity_count   uint32; they stay at their largest value, never wrap
sensitivity                     float32, mean of the sampled changes in NLL (nats) when the node is shown as its gist

0 means never. None of this is the truth of anything: a crash costs what was noted since the last ``flush``.
"""

import fcntl
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.columns import Column
from megacontext_vllm.tree.files.locks import unlock

logger = logging.getLogger(__name__)

COLUMNS: dict[str, type[np.uint32] | type[np.float32]] = {
    "created": np.uint32,
    "last_access": np.uint32,
    "access_count": np.uint32,
    "expand_count": np.uint32,
    "collapse_count": np.uint32,
    "sensitivity": np.float32,
    "sensitivity_count": np.uint32,
}
_LOCK = "telemetry.lock"
_MOST = 0xFFFF_FFFF
_CLOSE_SECONDS = 1.0

Indices = Sequence[int] | NDArray[np.integer[Any]]


class NodeTelemetry:
    """Notes of one handle of a tree. Noting costs no system call; ``flush`` writes. A context manager, not thread-safe.

    ``clock``: Unix seconds. Several processes may note on the same tree.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._counted: dict[tuple[int, str], list[NDArray[np.int64]]] = defaultdict(list)
        self._accessed: dict[int, list[tuple[NDArray[np.int64], int]]] = defaultdict(list)
        self._sampled: dict[int, list[tuple[NDArray[np.int64], NDArray[np.float64]]]] = defaultdict(list)
        self._created: list[tuple[int, int, int, int]] = []

    def note_access(self, level: int, indices: Indices) -> None:
        """These nodes, ``[n]`` in any order, were shown; one that is there twice counts twice."""
        self._accessed[level].append((_nodes(indices), self._now()))

    def note_expand(self, level: int, indices: Indices) -> None:
        """These nodes were expanded into their children."""
        self._counted[level, "expand_count"].append(_nodes(indices))

    def note_collapse(self, level: int, indices: Indices) -> None:
        """The children of these nodes were collapsed into them."""
        self._counted[level, "collapse_count"].append(_nodes(indices))

    def note_sensitivity(self, level: int, indices: Indices, values: Sequence[float] | NDArray[Any]) -> None:
        """Samples of ΔNLL in nats, ``[n]``, one per index; those that are no number are left out."""
        nodes, samples = _nodes(indices), np.asarray(values, np.float64)
        assert samples.shape == nodes.shape, (samples.shape, nodes.shape)
        good = np.isfinite(samples)
        self._sampled[level].append((nodes[good], samples[good]))

    def note_created(self, level: int, start: int, stop: int) -> None:
        """Nodes ``[start, stop)`` came to be now."""
        assert 0 <= start <= stop
        self._created.append((level, start, stop, self._now()))

    def _now(self) -> int:
        return min(max(int(self._clock()), 1), _MOST)

    def flush(self) -> None:
        """Write what was noted. While another process does the same, nothing is written and the notes are kept.

        What a disk refuses is logged and forgotten: telemetry must not stop a request.
        """
        if not (self._counted or self._accessed or self._sampled or self._created):
            return
        try:
            lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self._forget(error)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write()
            self._clear()
        except BlockingIOError:
            return
        except (OSError, StoreError) as error:
            self._forget(error)
        finally:
            unlock(lock)

    def _write(self) -> None:
        for level, start, stop, now in self._created:
            with self._column(level, "created") as column:
                column.fill(start, stop, now)
        for (level, name), noted in self._counted.items():
            self._add(level, name, *np.unique(np.concatenate(noted), return_counts=True))
        for level, seen in self._accessed.items():
            self._write_access(level, seen)
        for level, samples in self._sampled.items():
            self._write_sensitivity(level, samples)

    def _add(self, level: int, name: str, nodes: NDArray[np.int64], added: NDArray[np.int64]) -> None:
        with self._column(level, name) as column:
            column.update(nodes, lambda old: _added(old, added))

    def _write_access(self, level: int, seen: list[tuple[NDArray[np.int64], int]]) -> None:
        noted = np.concatenate([item for item, _ in seen])
        nodes, places, added = np.unique(noted, return_inverse=True, return_counts=True)
        latest = np.zeros(len(nodes), np.uint32)
        np.maximum.at(latest, places, np.repeat([now for _, now in seen], [len(item) for item, _ in seen]))
        self._add(level, "access_count", nodes, added)
        with self._column(level, "last_access") as column:
            column.update(nodes, lambda old: np.maximum(old, latest))

    def _write_sensitivity(self, level: int, noted: list[tuple[NDArray[np.int64], NDArray[np.float64]]]) -> None:
        nodes, places = np.unique(np.concatenate([item for item, _ in noted]), return_inverse=True)
        added = np.bincount(places, minlength=len(nodes))
        sums = np.bincount(places, np.concatenate([values for _, values in noted]), minlength=len(nodes))
        counts: NDArray[Any] = np.empty(0)

        def count(old: NDArray[np.uint32]) -> NDArray[np.uint32]:
            nonlocal counts
            counts = old.astype(np.float64)
            return _added(old, added)

        def mean(old: NDArray[np.float32]) -> NDArray[np.float32]:
            known = np.where(np.isfinite(old), counts, 0)  # a damaged mean starts anew
            before = np.where(known > 0, old, 0).astype(np.float64)
            limit = float(np.finfo(np.float32).max)
            return np.clip(before + (sums - added * before) / (known + added), -limit, limit).astype(np.float32)

        with (
            self._column(level, "sensitivity_count") as count_column,
            self._column(level, "sensitivity") as mean_column,
        ):
            count_column.update(nodes, count)
            mean_column.update(nodes, mean)

    def read(self, level: int, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """All columns of nodes ``[start, stop)``, each ``[n]``, by name, as of the last flush. Raises StoreError."""
        return {name: read_column(self.folder, level, name, start, stop) for name in COLUMNS}

    def _column(self, level: int, name: str) -> Column:
        return Column(self.folder, level, name, COLUMNS[name], writable=True)

    def _clear(self) -> None:
        for noted in (self._counted, self._accessed, self._sampled, self._created):
            noted.clear()

    def _forget(self, error: Exception) -> None:
        logger.warning("what happened to nodes of %s is not noted: %s", self.folder, error)
        self._clear()

    def close(self) -> None:
        """Write the rest. May be called twice."""
        until = time.monotonic() + _CLOSE_SECONDS
        self.flush()
        while (self._counted or self._accessed or self._sampled or self._created) and time.monotonic() < until:
            time.sleep(0.001)
            self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def read_column(folder: Path, level: int, name: str, start: int, stop: int) -> NDArray[Any]:
    """One of ``COLUMNS`` of nodes ``[start, stop)``, ``[n]``. Raises StoreError."""
    with Column(folder, level, name, COLUMNS[name]) as column:
        values: NDArray[Any] = column.read(start, stop)
        return values


def _nodes(indices: Indices) -> NDArray[np.int64]:
    """A copy: the caller may go on with its array."""
    nodes = np.array(indices, np.int64)
    assert nodes.ndim == 1 and (not len(nodes) or nodes.min() >= 0), nodes
    return nodes


def _added(old: NDArray[np.uint32], added: NDArray[np.int64]) -> NDArray[np.uint32]:
    return np.asarray(np.minimum(old.astype(np.int64) + added, _MOST), np.uint32)
