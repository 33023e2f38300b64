"""Undo an action: what it took away comes back from the archive, bit by bit as it was."""

import logging
import os
import time
from contextlib import closing
from pathlib import Path
from typing import NoReturn

from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError
from megacontext_vllm.tree.curation.dropped import DroppedFile, DroppedLevel
from megacontext_vllm.tree.curation.log import curating, history, log_entry, try_log, write_log
from megacontext_vllm.tree.curation.nets import nets_of
from megacontext_vllm.tree.curation.pending import finish, punch_holes, unchanged_times
from megacontext_vllm.tree.curation.places import archive_folder, archived_rows, checked_action_id, who_is
from megacontext_vllm.tree.curation.span_hashes import SpanHashes
from megacontext_vllm.tree.curation.whole import is_tree_action, restore_tree
from megacontext_vllm.tree.files.checksums import Checksums, checksum_path, page_rows, write_all
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.files.header import level_path
from megacontext_vllm.tree.files.level_file import open_again
from megacontext_vllm.tree.files.level_reader import LevelReader, read_header
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.files.mend import cut_level
from megacontext_vllm.tree.gists import mark_damaged
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.store.prefix_hash import chained_hashes

logger = logging.getLogger(__name__)


def restore(store: Path, folder: Path, action_id: str, now: float | None = None) -> None:
    """Undo a compaction of the tree in ``folder``, or bring that tree back as a whole. Nobody may have it open.

    Gists come back too; those that another GistNet would make differently by now are marked as to be made again.
    ``now``: Unix seconds, for the log. Raises RequestError (no such action, restored or purged before),
    TreeInUseError, UnknownTreeError, CorruptTreeError (the archive is damaged; the tree stays as it is), StoreError
    (disk full, likewise).
    """
    checked_action_id(action_id)
    now = time.time() if now is None else now
    namespace, tree_id = who_is(store, folder)
    archive = archive_folder(store, namespace, tree_id)
    with curating(store):
        if is_tree_action(archive, action_id):
            restore_tree(store, namespace, tree_id, action_id, now)
            return
        path = archived_rows(archive, action_id)
        if not path.exists():
            _explain(store, tree_id, action_id)
        with claim(folder):
            sealed = SealedSpans.of(folder)
            found = next((item for item in sealed if item.action == action_id), None)
            if found is None:  # restored, but for the archive: whoever did it was killed
                finish(folder, archive)
                _explain(store, tree_id, action_id)
            entry = {"kind": "restore", "action": action_id, "start": found.start, "stop": found.stop}
            write_log(store, [log_entry(namespace, tree_id, "begin", now) | entry])
            try:
                _restore_span(folder, path, (action_id, namespace, tree_id), sealed, found)
            except (OSError, StoreError) as error:
                try_log(store, [log_entry(namespace, tree_id, "failed", now, str(error)) | entry])
                if isinstance(error, StoreError):
                    raise
                raise StoreError(f"cannot restore {action_id}: {error.strerror}; it can be tried again") from error
            try_log(store, [log_entry(namespace, tree_id, "done", now) | entry])


def _explain(store: Path, tree_id: str, action_id: str) -> NoReturn:
    """Raises RequestError, which says what became of an action that cannot be restored."""
    entries = [entry for entry in history(store, tree_id) if entry.get("action") == action_id]
    last = entries[-1] if entries else {}
    when = last.get("time")
    day = time.strftime("%Y-%m-%d", time.gmtime(when)) if isinstance(when, (int, float)) else "an unknown day"
    if any(entry.get("kind") == "purge" for entry in entries):
        raise RequestError(f"action {action_id} was purged from the archive on {day}: it cannot be restored any more")
    if last.get("kind") == "restore" and last.get("event") in ("begin", "done"):
        raise RequestError(f"action {action_id} was restored on {day} already")
    if any(entry.get("event") == "done" for entry in entries):
        raise RequestError(f"action {action_id} cannot be restored: its archive is missing. Put it back from a backup")
    if entries:
        raise RequestError(f"action {action_id} was never carried out: there is nothing to restore")
    raise RequestError(f"tree {tree_id} has no action {action_id}; see the log of curation for those there are")


def _restore_span(
    folder: Path, path: Path, who: tuple[str, str, str], sealed: SealedSpans, found: SealedSpan
) -> None:
    """Rows first, on the disk, then the span goes, then the archive. Raises StoreError, OSError."""
    model = bytes.fromhex(read_meta(folder)["model_fingerprint"])
    with DroppedFile(path) as dropped:
        what = dropped.what
        told = (what.action_id, what.namespace, what.tree_id, what.level, what.index, what.model_fingerprint)
        if told != (*who, found.level, found.index, model):
            raise CorruptTreeError(f"{path} is of another action or tree: {told[:5]}")
        open_again(level_path(folder, 0)).close()
        _require_right_tokens(folder, dropped, sealed, found)
        levels = [item for item in what.levels if _is_wanted(folder, item)]
        try:
            for item in levels:
                _write_back(folder, dropped, item)
        except BaseException:
            try:
                punch_holes(folder, sealed, [found])
            except (OSError, StoreError) as error:
                logger.warning("rows of a restore that failed still take space: %s", error)
            raise
    SealedSpans(item for item in sealed if item != found).save(folder)
    path.unlink()
    sync_path(path.parent)


def _require_right_tokens(folder: Path, dropped: DroppedFile, sealed: SealedSpans, found: SealedSpan) -> None:
    """Compare the tokens with the hashes of the span, so that no other archive passes for this one."""
    try:
        with closing(LevelReader(level_path(folder, 0))) as reader:
            previous = SpanHashes(reader, sealed).before(found.start)
    except StoreError as error:
        logger.warning("the tokens of %s are not compared with their hashes: %s", dropped.path, error)
        return
    hashes: list[bytes] = []
    for _, tokens, _ in dropped.rows(0):
        hashes += chained_hashes(tokens, hashes[-1] if hashes else previous)
    if tuple(hashes) != found.hashes:
        raise CorruptTreeError(f"{dropped.path} has other tokens than were compacted")


def _is_wanted(folder: Path, item: DroppedLevel) -> bool:
    """Whether the rows fit the level file as it is now; gists that do not are left to be made again."""
    path = level_path(folder, item.level)
    try:
        with closing(LevelReader(path)) as reader:
            header, count = reader.header, reader.count
    except FileNotFoundError:
        if item.level:
            return False
        raise CorruptTreeError(f"{path} is missing; import a copy of the tree") from None
    stop = item.first + item.count
    if (header.level, header.dtype, header.dim) == (item.level, item.dtype, item.dim) and count >= stop:
        if item.level and [net for run, net in item.nets for _ in range(run)] != nets_of(
            folder, item.level, item.first, stop
        ):
            logger.warning("gists %d to %d of %s are to be made again: the net changed", item.first, stop, path)
            mark_damaged(folder, item.level, item.first, stop)
        return True
    if item.level == 0:
        raise CorruptTreeError(f"{path} has {count} tokens, but tokens {item.first} to {stop} are to be restored")
    if count > item.first:
        logger.warning("gists of %s from %d on are to be made again: they are of another kind now", path, item.first)
        cut_level(path, item.first)
    return False


def _write_back(folder: Path, dropped: DroppedFile, item: DroppedLevel) -> None:
    path = level_path(folder, item.level)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        header = read_header(fd, path)
        sidecar = os.open(checksum_path(path), os.O_RDWR | os.O_CLOEXEC)
        try:
            sums = Checksums(sidecar, header.level, header.row_bytes)
            with unchanged_times(fd):
                for start, rows, pages in dropped.rows(item.level):
                    write_all(fd, rows.data, header.file_bytes(start))
                    sums.write_pages(start // page_rows(item.level), pages)
            os.fsync(fd)
            os.fsync(sidecar)
        finally:
            os.close(sidecar)
    finally:
        os.close(fd)
