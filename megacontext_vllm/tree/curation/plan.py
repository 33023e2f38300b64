"""From telemetry and a policy to a plan. Nothing is changed here.

A node can be compacted when nothing below its gist is needed: no raw token and no lower gist was made or shown for
long. That the gist itself is shown all the time does not count, as that is what stays.
"""

from contextlib import closing
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.curation.actions import Action, CurationPlan, Kind, new_action_id
from megacontext_vllm.tree.curation.policy import DAY_SECONDS, CurationPolicy, age_seconds
from megacontext_vllm.tree.files.columns import column_path
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gists import stale
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes, span
from megacontext_vllm.tree.store.places import disk_bytes, last_change
from megacontext_vllm.tree.tree import MegaContextTree

_CHUNK = BLOCK**4
"""Nodes of telemetry read at once; whole nodes of every level that is compacted but the highest, which take several."""

_Codes = NDArray[np.uint8]

_FREE, _WARM, _OFTEN, _SENSITIVE, _NO_GIST, _CHAIN, _SEALED, _PROTECTED, _TAIL, _HEAD, _UNFINISHED = range(11)
_REASONS = {
    _WARM: "used lately",
    _OFTEN: "used often",
    _SENSITIVE: "sensitive: its gist does not stand for it well",
    _NO_GIST: "its gist, or one below, is missing, damaged or to be made again",
    _CHAIN: "the tokens before it were lost with their hashes",
    _SEALED: "sealed already",
    _PROTECTED: "protected",
    _TAIL: "among the newest tokens",
    _HEAD: "among the first tokens",
    _UNFINISHED: "not a complete node yet",
}


class Telemetry(Protocol):
    """What a plan needs of ``NodeTelemetry``: columns of nodes ``[start, stop)`` by name, each ``[n]``, 0 for never."""

    def read(self, level: int, start: int, stop: int) -> dict[str, NDArray[Any]]: ...


def make_plan(
    tree: MegaContextTree,
    telemetry: Telemetry | None,
    policy: CurationPolicy,
    now: float,
    last_use: float | None = None,
) -> CurationPlan:
    """Say what ``policy`` does to an open tree.

    ``telemetry`` None, or silent about a node: the node is as old as the tree's last growth. ``now``: Unix seconds.
    ``last_use``: when the index says that the tree was used. A pinned tree is kept as it is. Raises StoreError.
    """
    length = tree.length

    def planned(actions: list[Action]) -> CurationPlan:
        return CurationPlan(tree.namespace, tree.tree_id, now, length, policy, tuple(actions))

    if read_meta(tree.path)["pinned"]:
        return planned([Action("keep", 0, length, "pinned")])
    grown = max(last_change(tree.path), tree.created)
    if policy.archive_days is not None or policy.delete_days is not None:
        age = age_seconds(now, max(grown, last_use or 0.0, _last_access(tree, telemetry, length)))
        bounds: tuple[tuple[Kind, float | None], ...] = (
            ("delete", policy.delete_days),
            ("archive", policy.archive_days),
        )
        for kind, days in bounds:
            if days is not None and age >= days * DAY_SECONDS:
                reason = f"not used for {age / DAY_SECONDS:.0f} days"
                size = disk_bytes(tree.path)
                return planned([Action(kind, 0, length, reason, size, action_id=new_action_id())])
    return planned(_Planner(tree, telemetry, policy, now, grown, length).actions())


def _last_access(tree: MegaContextTree, telemetry: Telemetry | None, length: int) -> float:
    """When any node of the tree was last shown, Unix seconds."""
    latest = 0.0
    for level in range(_lowest(tree), depth(length) + 1) if telemetry is not None else ():
        count = num_nodes(length, level)
        for start in range(0, count, _CHUNK):
            assert telemetry is not None
            latest = max(latest, float(telemetry.read(level, start, min(start + _CHUNK, count))["last_access"].max()))
    return latest


def _lowest(tree: MegaContextTree) -> int:
    """The lowest level with telemetry. Single tokens hardly ever have some, and are many."""
    return 0 if column_path(tree.path, 0, "last_access").exists() else 1


class _Planner:
    """One tree, one policy. Codes say why a node is kept; higher ones win; ``_FREE``: it may go."""

    def __init__(
        self,
        tree: MegaContextTree,
        telemetry: Telemetry | None,
        policy: CurationPolicy,
        now: float,
        grown: float,
        length: int,
    ) -> None:
        self.tree, self.telemetry, self.policy = tree, telemetry, policy
        self.now, self.grown, self.length = now, grown, length
        self.row_bytes: dict[int, int] = {0: 4}

    def actions(self) -> list[Action]:
        """Everything that is done and everything that is kept, in order, tiling ``[0, length)``."""
        lowest, width = self.policy.compact_level, BLOCK**self.policy.compact_level
        codes = {lowest: self._codes_of_smallest()}
        for level in range(lowest + 1, self.policy.max_level + 1):
            codes[level] = self._codes_of_merged(level, codes[level - 1])
        compacted: list[Action] = []
        free = codes[lowest] == _FREE
        for level in range(self.policy.max_level, lowest - 1, -1):
            children = BLOCK ** (level - lowest)
            for index in np.flatnonzero(codes[level] == _FREE).tolist():
                if free[index * children]:  # not within a larger one
                    free[index * children : (index + 1) * children] = False
                    compacted.append(self._compact(level, index))
        compacted.sort(key=lambda action: action.start)
        kept = codes[lowest].tolist()
        actions: list[Action] = []
        at = 0
        for action in [*compacted, None]:
            stop = self.length if action is None else action.start
            while at < stop:
                code = kept[at // width] if at // width < len(kept) else _UNFINISHED
                actions.append(Action("keep", at, min(at + width, stop), _REASONS[code]))
                if len(actions) > 1 and actions[-2].kind == "keep" and actions[-2].reason == actions[-1].reason:
                    last = actions.pop()
                    actions[-1] = Action("keep", actions[-1].start, last.stop, last.reason)
                at = actions[-1].stop
            if action is not None:
                actions.append(action)
                at = action.stop
        return actions

    def _compact(self, level: int, index: int) -> Action:
        start, stop = span(level, index)
        size = sum((stop - start) // BLOCK**below * self.row_bytes[below] for below in range(level))
        reason = f"nothing below its gist was used for {self.policy.cold_days:g} days"
        return Action("compact", start, stop, reason, size, level, index, new_action_id())

    def _codes_of_smallest(self) -> _Codes:
        level, policy = self.policy.compact_level, self.policy
        width, count = BLOCK**level, num_nodes(self.length, level)
        codes = self._use_below(level, count)
        self._require_gists(codes, level)
        for item in self.tree.sealed:
            if not item.hashes:
                codes[item.start // width :] = np.maximum(codes[item.start // width :], _CHAIN)
                break
        for item in self.tree.sealed:
            codes[item.start // width : -(-item.stop // width)] = _SEALED
        for start, stop in policy.protected:
            if start < stop:
                codes[start // width : -(-stop // width)] = _PROTECTED
        codes[max((self.length - policy.protect_tail_tokens) // width, 0) :] = _TAIL
        codes[: -(-policy.protect_head_tokens // width)] = _HEAD
        return codes

    def _codes_of_merged(self, level: int, below: _Codes) -> _Codes:
        count = num_nodes(self.length, level)
        codes = below[: count * BLOCK].reshape(count, BLOCK).max(axis=1)
        shown = self._use(level - 1, 0, count * BLOCK).reshape(count, BLOCK).max(axis=1)
        codes = np.asarray(np.maximum(codes, shown), np.uint8)
        self._require_gists(codes, level)
        return codes

    def _use_below(self, level: int, count: int) -> _Codes:
        """Codes of the first ``count`` nodes of ``level``, by how what is below them was used."""
        codes = np.zeros(count, np.uint8)
        for below in range(_lowest(self.tree), level):
            children = BLOCK ** (level - below)
            step = max(_CHUNK // children, 1)
            for start in range(0, count, step):
                stop = min(start + step, count)
                use = self._use(below, start * children, stop * children).reshape(-1, children).max(axis=1)
                codes[start:stop] = np.maximum(codes[start:stop], use)
        return codes

    def _use(self, level: int, start: int, stop: int) -> _Codes:
        """Codes of nodes ``[start, stop)`` by how they were used themselves."""
        codes = np.zeros(stop - start, np.uint8)
        if self.telemetry is None or stop == start:
            codes[:] = _WARM if self._age(self.grown) < self.policy.cold_days * DAY_SECONDS else _FREE
            return codes
        columns = self.telemetry.read(level, start, stop)
        noted = np.maximum(columns["last_access"], columns["created"]).astype(np.float64)
        noted[noted == 0] = self.grown
        codes[np.maximum(self.now - noted, 0) < self.policy.cold_days * DAY_SECONDS] = _WARM
        if self.policy.max_access_count is not None:
            codes[columns["access_count"] > self.policy.max_access_count] = _OFTEN
        if self.policy.protect_sensitivity is not None:
            known = columns["sensitivity_count"] > 0
            codes[known & ~(columns["sensitivity"] < self.policy.protect_sensitivity)] = _SENSITIVE
        return codes

    def _age(self, then: float) -> float:
        return age_seconds(self.now, then)

    def _require_gists(self, codes: _Codes, level: int) -> None:
        """Set ``_NO_GIST`` on nodes of ``level`` that could go otherwise, but have no sound gist, or none below."""
        for below in range(1, level):
            there = self.tree.gist_count(below) * BLOCK**below // BLOCK**level
            codes[there:] = np.maximum(codes[there:], _NO_GIST)
        there = self.tree.gist_count(level)
        codes[there:] = np.maximum(codes[there:], _NO_GIST)
        if there == 0 or not (codes == _FREE).any():
            return
        for below in range(1, level):
            self.row_bytes.setdefault(below, self._row_bytes(below))
        old = stale(self.tree.path, level, self.tree.sealed)[: len(codes)]
        codes[: len(old)][old] = np.maximum(codes[: len(old)][old], _NO_GIST)
        with self._reader(level) as reader:
            for page in np.unique(np.flatnonzero(codes == _FREE) // reader.page_rows).tolist():
                if reader.bad_pages(page, page + 1):
                    rows = codes[page * reader.page_rows : (page + 1) * reader.page_rows]
                    np.maximum(rows, _NO_GIST, out=rows)

    def _row_bytes(self, level: int) -> int:
        with self._reader(level) as reader:
            return reader.header.row_bytes

    def _reader(self, level: int) -> closing[LevelReader]:
        path = self.tree.gist_path(level)
        try:
            return closing(LevelReader(path))
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
