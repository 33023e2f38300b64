"""Give up the way back: delete what is in the archive, to have its space."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megacontext_vllm.errors import RequestError, StoreError
from megacontext_vllm.tree.curation.actions import is_action_id
from megacontext_vllm.tree.curation.log import curating, log_entry, try_log, write_log
from megacontext_vllm.tree.curation.places import DRAFT_SUFFIX, MARKER_SUFFIX, ROWS_SUFFIX, TREE, checked_action_id
from megacontext_vllm.tree.curation.policy import DAY_SECONDS, age_seconds
from megacontext_vllm.tree.curation.whole import marker_time
from megacontext_vllm.tree.store.places import disk_bytes, is_namespace, is_tree_id

_GRAVE = ".tree.deleted"


@dataclass
class Purged:
    """Ids of actions that cannot be restored any more. ``freed``: bytes on the disk."""

    actions: list[str] = field(default_factory=list)
    freed: int = 0


def purge(
    store: Path, now: float, older_than_days: float = 0.0, tree_id: str | None = None, action_id: str | None = None
) -> Purged:
    """Delete from the archive what was taken at least ``older_than_days`` before ``now`` (Unix seconds).

    ``tree_id``, ``action_id``: only of this tree, only this action. Trees need not be closed. Raises RequestError (a
    malformed id, less than 0 days), StoreError.
    """
    if not older_than_days >= 0:  # nor is it a number that is none
        raise RequestError(f"cannot purge what was taken {older_than_days:g} days ago or earlier; give 0 or more")
    if action_id is not None:
        checked_action_id(action_id)
    done = Purged()
    with curating(store):
        try:
            for archive in _archives(store):
                if tree_id is not None and archive.name != tree_id:
                    continue
                _remove_folder(archive / _GRAVE)
                for file in sorted(archive.iterdir()):
                    if file.suffix not in (ROWS_SUFFIX, MARKER_SUFFIX) or not is_action_id(file.stem):
                        continue
                    if action_id is not None and file.stem != action_id:
                        continue
                    taken = marker_time(file) if file.suffix == MARKER_SUFFIX else file.stat().st_mtime
                    if age_seconds(now, taken) >= older_than_days * DAY_SECONDS:
                        _purge(store, archive, file, now, done)
                if not any(archive.iterdir()):
                    archive.rmdir()
        except OSError as error:
            raise StoreError(f"cannot purge the archive of {store}: {error.strerror}") from error
    return done


def _archives(store: Path) -> Iterator[Path]:
    for archive in sorted((store / "archive").glob("*/*")):
        if is_namespace(archive.parent.name) and is_tree_id(archive.name) and archive.is_dir():
            yield archive


def _purge(store: Path, archive: Path, file: Path, now: float, done: Purged) -> None:
    """In the log before it happens: who asks for it later is told."""
    tree = archive / TREE
    has_tree = file.suffix == MARKER_SUFFIX and tree.exists()
    size = file.stat().st_blocks * 512 + (disk_bytes(tree) if has_tree else 0)
    entry = {"kind": "purge", "action": file.stem, "bytes": size}
    who = archive.parent.name, archive.name
    write_log(store, [log_entry(*who, "begin", now) | entry])
    if has_tree:
        tree.rename(archive / _GRAVE)
    file.unlink()
    _remove_folder(archive / _GRAVE)
    file.with_name(file.name + DRAFT_SUFFIX).unlink(missing_ok=True)
    try_log(store, [log_entry(*who, "done", now) | entry])
    done.actions.append(file.stem)
    done.freed += size


def _remove_folder(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
