"""Retention: delete the trees that were not used for longest, until the store keeps to its bounds.

A tree that is in use, by whatever process, or pinned is never deleted. Nor is any because a clock jumped: the time
that this process has been running is measured with a clock that does not, and bounds what it believes of the other.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megacontext_vllm.errors import ConfigError, CorruptTreeError, StoreError, TreeInUseError, UnknownTreeError
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.store.index import StoreRow, TreeIndex
from megacontext_vllm.tree.store.places import bury, disk_bytes, empty_grave, names_lock, tree_folder

logger = logging.getLogger(__name__)

DAY_SECONDS = 86_400.0
_LOG_BYTES = 16 << 20
"""The log is begun anew at this size; the one before is kept beside it."""
_PAUSE_SECONDS = 10.0

Used = Mapping[tuple[str, str], float]
"""``(namespace, tree id)`` to the ``time.monotonic()`` of its last use by this process."""


@dataclass(frozen=True)
class RetentionPolicy:
    """Bounds of a store, of all models and namespaces together; None: unbounded.

    max_bytes      what the trees may occupy on the disk
    max_age_days   how long an unused tree is kept
    """

    max_bytes: int | None = None
    max_age_days: float | None = None

    def __post_init__(self) -> None:
        if self.max_bytes is not None and self.max_bytes < 0:
            raise ConfigError(f"retention by {self.max_bytes} bytes: give 0 or more, or leave it out")
        if self.max_age_days is not None and not self.max_age_days >= 0:
            raise ConfigError(f"retention by {self.max_age_days} days: give 0 or more, or leave it out")


@dataclass
class RetentionReport:
    """What was done, as ``(namespace, tree id)``. ``skipped``: trees that should have gone, and why they did not."""

    deleted: list[tuple[str, str]] = field(default_factory=list)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    freed: int = 0
    """Bytes on the disk."""


class Clock:
    """Unix time that never runs ahead of how long this process has been alive; behind is harmless."""

    def __init__(self) -> None:
        self._wall, self._monotonic = time.time(), time.monotonic()

    def now(self) -> float:
        return min(time.time(), self._wall + time.monotonic() - self._monotonic)


def enforce(
    store: Path,
    index: TreeIndex,
    policy: RetentionPolicy,
    clock: Clock,
    used: Callable[[], Used] = dict,
    most: int | None = None,
) -> RetentionReport:
    """Delete what the policy says, at most ``most`` trees, the least recently used first.

    ``index`` may be any model's. A time of use that lies in the future counts as now. Raises StoreError when the index
    fails; a tree that cannot be deleted is skipped and named in the report.
    """
    report = RetentionReport()
    too_much = 0 if policy.max_bytes is None else index.store_bytes() - policy.max_bytes
    if too_much <= 0 and policy.max_age_days is None:
        return report
    now, here = clock.now(), used()
    oldest = None if policy.max_age_days is None else now - policy.max_age_days * DAY_SECONDS
    monotonic = time.monotonic()

    def last_use(row: StoreRow) -> float:
        mine = here.get((row.namespace, row.tree_id))
        return min(row.last_access, now) if mine is None else now - (monotonic - mine)

    rows = index.unpinned(None if too_much > 0 else oldest)
    for row in sorted(rows, key=last_use):
        is_old = oldest is not None and last_use(row) < oldest
        if (not is_old and too_much <= 0) or (most is not None and len(report.deleted) >= most):
            break
        reason = "age" if is_old else "bytes"
        key = (row.namespace, row.tree_id)
        try:
            freed = _delete(store, index, row, reason, last_use(row))
        except StoreError as error:
            report.skipped[key] = str(error)
            if not isinstance(error, TreeInUseError):
                logger.warning("tree %s should be deleted, but cannot be: %s", row.tree_id, error)
            continue
        too_much -= row.bytes
        if freed is not None:
            report.deleted.append(key)
            report.freed += freed
    return report


class Retention:
    """A policy at work on a store, a bounded piece at a time. Any thread may call it."""

    def __init__(self, store: Path, index: TreeIndex, policy: RetentionPolicy | None) -> None:
        self._store, self._index, self._policy = store, index, policy
        self._clock = Clock()
        self._used: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()
        self._at_work = threading.Lock()
        self._not_before = 0.0

    def used(self, namespace: str, tree_id: str) -> None:
        """Note that this process uses a tree now."""
        if self._policy is not None:
            with self._lock:
                self._used[namespace, tree_id] = time.monotonic()

    def enforce(self, most: int) -> None:
        """Delete at most ``most`` trees, if there is a policy and it says so. What fails is logged and tried again."""
        if self._policy is None or not self._at_work.acquire(blocking=False):
            return
        try:
            if time.monotonic() < self._not_before:
                return
            report = enforce(self._store, self._index, self._policy, self._clock, self._uses, most)
            with self._lock:
                for key in report.deleted:
                    self._used.pop(key, None)
            if report.skipped and not report.deleted:  # all in use: no need to look again with every request
                self._not_before = time.monotonic() + _PAUSE_SECONDS
        except StoreError as error:
            logger.warning("retention is put off: %s", error)
        finally:
            self._at_work.release()

    def _uses(self) -> Used:
        with self._lock:
            return dict(self._used)


def _delete(store: Path, index: TreeIndex, row: StoreRow, reason: str, last_use: float) -> int | None:
    """Delete one tree; returns the bytes that it took, None if it was gone already. Raises StoreError."""
    trees = store / "trees"
    try:
        folder = tree_folder(trees, row.namespace, row.tree_id)
        with names_lock(trees), claim(folder):
            name = _require_unpinned(folder)
            size = disk_bytes(folder)
            grave = bury(folder)
    except UnknownTreeError:
        index.remove(row.namespace, row.tree_id, row.model)
        return None
    try:
        index.remove(row.namespace, row.tree_id, row.model)
    finally:
        empty_grave(grave)
    logger.info(
        "tree %s of namespace %s is deleted (%s): %d tokens, %d bytes, last used %s UTC",
        row.tree_id,
        row.namespace,
        {"age": "it was not used for longest allowed", "bytes": "the store was full"}[reason],
        row.length,
        size,
        time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(last_use, 0))),
    )
    _append_log(
        store / "log" / "retention.jsonl",
        {
            "time": time.time(),
            "reason": reason,
            "namespace": row.namespace,
            "tree_id": row.tree_id,
            "name": name,
            "model_fingerprint": row.model.hex(),
            "tokens": row.length,
            "bytes": size,
            "last_use": last_use,
        },
    )
    return size


def _require_unpinned(folder: Path) -> str | None:
    """The name of the tree. Raises TreeInUseError for one that is pinned, or whose meta.json does not say."""
    try:
        meta = read_meta(folder)
    except CorruptTreeError as error:
        raise TreeInUseError(f"whether it is pinned cannot be read: {error}") from None
    if meta["pinned"]:
        raise TreeInUseError(f"{folder} is pinned")
    name = meta["name"]
    return None if name is None else str(name)


def _append_log(file: Path, entry: dict[str, object]) -> None:
    try:
        file.parent.mkdir(exist_ok=True)
        if file.exists() and file.stat().st_size > _LOG_BYTES:
            file.replace(file.with_suffix(".jsonl.1"))
        with file.open("a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")
    except OSError as error:
        logger.warning("the deletion of tree %s is not logged in %s: %s", entry["tree_id"], file, error)
