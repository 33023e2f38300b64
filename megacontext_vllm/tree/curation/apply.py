"""Carry out a plan. Nothing is dropped before it is in the archive and on the disk; see ``pending.py`` for crashes."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import CorruptTreeError, MegaContextError, RequestError, StoreError
from megacontext_vllm.tree.curation.actions import Action, CurationPlan
from megacontext_vllm.tree.curation.dropped import Dropped, DroppedLevel, runs_of, write_dropped
from megacontext_vllm.tree.curation.log import curating, log_entry, try_log, write_log
from megacontext_vllm.tree.curation.nets import nets_of
from megacontext_vllm.tree.curation.pending import finish, punch_holes
from megacontext_vllm.tree.curation.places import archive_folder, archived_rows, make_archive, tree_marker, who_is
from megacontext_vllm.tree.curation.span_hashes import SpanHashes
from megacontext_vllm.tree.curation.whole import take_tree
from megacontext_vllm.tree.files.checksums import checksum_path
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.files.header import level_path
from megacontext_vllm.tree.files.level_file import open_again
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.gists import stale
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.store.places import disk_bytes
from megacontext_vllm.tree.tree import gist_levels

logger = logging.getLogger(__name__)

_AT_ONCE, _BYTES_AT_ONCE = 1024, 1 << 28

Progress = Callable[[int, int], None]
"""Called with (tokens done, tokens in all)."""


@dataclass
class Applied:
    """Ids of the actions that were done, or were already; and why others were not. ``freed``: bytes in the tree."""

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    freed: int = 0


def apply(
    store: Path, folder: Path, plan: CurationPlan, now: float | None = None, progress: Progress | None = None
) -> Applied:
    """Do what ``plan`` says to the tree in ``folder``, which nobody may have open.

    Everything is checked again: an action that does not fit the tree as it is now is left out and named. A plan may be
    applied twice. ``now``: Unix seconds, for the log. Raises TreeInUseError, RequestError (another tree's plan),
    UnknownTreeError, CorruptTreeError, StoreError (disk full; what was done by then stays, and can be restored).
    """
    namespace, tree_id = who_is(store, folder)
    if (plan.namespace, plan.tree_id) != (namespace, tree_id):
        raise RequestError(f"the plan is for tree {plan.tree_id} of {plan.namespace}, not for {tree_id} of {namespace}")
    now = time.time() if now is None else now
    for action in plan.actions:
        if action.kind in ("archive", "delete"):
            with curating(store):
                return _take(store, folder, plan, action, now)
    done = Applied()
    with curating(store), claim(folder), ExitStack() as stack:
        before = disk_bytes(folder)
        work = _Compaction(store, folder, plan, now, stack)
        try:
            work.run(done, progress)
        except OSError as error:
            raise StoreError(f"cannot curate {folder}: {error.strerror}; free disk space, check the rights") from error
        finally:
            done.freed = max(before - disk_bytes(folder), 0)
    return done


def _take(store: Path, folder: Path, plan: CurationPlan, action: Action, now: float) -> Applied:
    done = Applied()
    assert action.action_id is not None
    try:
        done.freed = take_tree(store, folder, plan, action, now)
        done.done.append(action.action_id)
    except RequestError as error:
        done.failed[action.action_id] = str(error)
    return done


class _Compaction:
    """Compacting nodes of one tree, which the caller has claimed, in a store that it curates."""

    def __init__(self, store: Path, folder: Path, plan: CurationPlan, now: float, stack: ExitStack) -> None:
        self.store, self.folder, self.plan, self.now = store, folder, plan, now
        self.meta = read_meta(folder)
        self.archive = archive_folder(store, plan.namespace, plan.tree_id)
        self._stack = stack
        self._readers: dict[int, LevelReader] = {}
        self._stale: dict[int, Any] = {}

    def run(self, done: Applied, progress: Progress | None) -> None:
        compact = [action for action in self.plan.actions if action.kind == "compact"]
        compact.sort(key=lambda action: action.start)
        # An overwrite that was interrupted is carried out now: later it would fill holes.
        for level in [0, *gist_levels(self.folder)]:
            open_again(level_path(self.folder, level)).close()
        finish(self.folder, self.archive)
        self.sealed = SealedSpans.of(self.folder)
        self.hashes = SpanHashes(self._reader(0), self.sealed)
        if compact:
            make_archive(self.archive)
            for level in [0, *gist_levels(self.folder)]:
                # What stays is all there is, and may not be lost with the power.
                sync_path(level_path(self.folder, level))
                sync_path(checksum_path(level_path(self.folder, level)))
        total, tokens = sum(action.stop - action.start for action in compact), 0
        for batch in _batches(compact):
            try:
                self._batch(batch, done)
            except BaseException:
                try:
                    finish(self.folder, self.archive)
                except StoreError as error:
                    logger.warning("%s", error)
                raise
            tokens += sum(action.stop - action.start for action in batch)
            if progress is not None:
                progress(tokens, total)

    def _batch(self, batch: list[Action], done: Applied) -> None:
        write_log(self.store, [self._entry(action, "begin") for action in batch])
        new: list[SealedSpan] = []
        entries = []
        for action in batch:
            assert action.action_id is not None
            try:
                span = self._archived(action)
            except OSError as error:
                try_log(self.store, [self._entry(action, "failed", str(error)) for action in batch])
                raise
            except MegaContextError as error:
                done.failed[action.action_id] = str(error)
                entries.append(self._entry(action, "failed", str(error)))
                continue
            if span is not None:
                new.append(span)
            done.done.append(action.action_id)
            entries.append(self._entry(action, "done"))
        if new:
            sync_path(self.archive)
            sealed = SealedSpans([*self.sealed, *new])
            sealed.save(self.folder)
            self.sealed = sealed
            punch_holes(self.folder, sealed, new)
        try_log(self.store, entries)

    def _archived(self, action: Action) -> SealedSpan | None:
        """Put what is below a node into the archive; None if it is compacted by this very action already."""
        assert action.level is not None and action.index is not None and action.action_id is not None
        level, index, action_id = action.level, action.index, action.action_id
        known = [item for item in self.sealed if item.action == action_id]
        if known and (known[0].level, known[0].index) == (level, index):
            return None
        path = archived_rows(self.archive, action_id)
        if known or path.exists() or tree_marker(self.archive, action_id).exists():
            raise RequestError(f"{action_id} is another action already; make a new plan")
        self._require_fit(action, level, index)
        hashes = self.hashes.of(action.start, action.stop)
        levels = tuple(self._level(below, action.start, action.stop) for below in range(level))
        model = bytes.fromhex(self.meta["model_fingerprint"])
        what = Dropped(action_id, self.plan.namespace, self.plan.tree_id, model, level, index, levels)
        write_dropped(path, what, self._reader)
        return SealedSpan(level, index, "compacted", hashes, action_id)

    def _require_fit(self, action: Action, level: int, index: int) -> None:
        length, where = self._reader(0).count, f"tokens {action.start} to {action.stop}"
        if self.meta["pinned"]:
            raise RequestError("the tree is pinned")
        if action.stop > length:
            raise RequestError(f"{where} are not all there: the tree has {length}")
        if (why := self.plan.policy.protects(action.start, action.stop, length)) is not None:
            raise RequestError(f"{where} are protected ({why})")
        if self.sealed.overlapping(action.start, action.stop):
            raise RequestError(f"{where} are sealed already, or some of them")
        for below in range(1, level + 1):
            try:
                there = self._reader(below).count * BLOCK**below
            except FileNotFoundError:
                there = 0
            if there < action.stop:
                raise RequestError(f"{where} have no gist of level {below} yet")
        self._reader(level).read(index, index + 1)
        if level not in self._stale:
            self._stale[level] = stale(self.folder, level, self.sealed)
        if self._stale[level][index]:
            raise RequestError(f"the gist of {where} is to be made again; refresh the tree first")

    def _level(self, level: int, start: int, stop: int) -> DroppedLevel:
        header = self._reader(level).header
        first, last = start // BLOCK**level, stop // BLOCK**level
        nets = runs_of(nets_of(self.folder, level, first, last)) if level else ()
        return DroppedLevel(level, header.dtype, header.dim, first, last - first, nets)

    def _reader(self, level: int) -> LevelReader:
        if level not in self._readers:
            reader = LevelReader(level_path(self.folder, level))
            self._stack.callback(reader.close)
            if reader.header.level != level:
                raise CorruptTreeError(f"{reader.path} is of level {reader.header.level}")
            self._readers[level] = reader
        return self._readers[level]

    def _entry(self, action: Action, event: str, error: str | None = None) -> dict[str, Any]:
        return log_entry(self.plan.namespace, self.plan.tree_id, event, self.now, error) | {
            **action.to_json(),
            "action": action.action_id,
        }


def _batches(actions: list[Action]) -> Iterator[list[Action]]:
    """Few enough at once that what a crash makes be done again is little."""
    batch: list[Action] = []
    for action in actions:
        batch.append(action)
        if len(batch) == _AT_ONCE or sum(item.bytes for item in batch) >= _BYTES_AT_ONCE:
            yield batch
            batch = []
    if batch:
        yield batch
