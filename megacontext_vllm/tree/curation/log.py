"""What curation did, in ``<store>/log/curation.jsonl``: a line before each action and one after. It only grows.

A process that dies may leave half a line at the end. It is skipped when reading, and the next line starts anew.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.files.locks import unlock

logger = logging.getLogger(__name__)

LOG = Path("log") / "curation.jsonl"


def log_entry(namespace: str, tree_id: str, event: str, now: float, error: str | None = None) -> dict[str, Any]:
    """What every line of the log has. ``event``: begin, done or failed."""
    entry = {"time": now, "event": event, "namespace": namespace, "tree_id": tree_id}
    return entry if error is None else entry | {"error": error}


def write_log(store: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Append entries, on the disk when this returns. Raises StoreError."""
    text = b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)
    path = store / LOG
    try:
        new = not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                text = b"\n" + text
            view = memoryview(text)
            while len(view):
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            unlock(fd)
        if new:
            sync_path(path.parent)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror}; free disk space or check the rights") from error


def try_log(store: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Append entries about what is done already, and cannot fail any more because of its log."""
    try:
        write_log(store, entries)
    except StoreError as error:
        logger.warning("what curation did is not logged: %s", error)


def history(store: Path, tree_id: str | None = None) -> list[dict[str, Any]]:
    """All entries, oldest first; ``tree_id``: of that tree. Lines that are damaged are left out. Raises StoreError."""
    path = store / LOG
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    entries = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if not isinstance(entry, dict):
            logger.warning("%s: line %d is damaged and skipped", path, number)
        elif tree_id is None or entry.get("tree_id") == tree_id:
            entries.append(entry)
    return entries


@contextmanager
def curating(store: Path) -> Iterator[None]:
    """Be the only one, in any process, who curates this store; waits for another to be done. Raises StoreError."""
    fd = -1
    try:
        try:
            fd = os.open(store / "curation.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise StoreError(f"cannot lock the store {store}: {error.strerror}") from error
        yield
    finally:
        unlock(fd)
