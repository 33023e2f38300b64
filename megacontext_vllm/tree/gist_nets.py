"""Which GistNets a tree has seen: ``gists.json``, and the lock under which it and what headers say are changed.

``{"format_version": 1, "versions": [fingerprint, ...]}``, newest last. The version of a net's gists is its place in it
plus one.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files.durability import Durability, sync_path
from megacontext_vllm.tree.files.header import MIXED
from megacontext_vllm.tree.files.locks import unlock

logger = logging.getLogger(__name__)

GISTS = "gists.json"
MOST_NETS = 65_535
"""A version is a u16."""
_LOCK = "gists.lock"
_FORMAT_VERSION = 1


def read_nets(folder: Path) -> list[bytes] | None:
    """The nets in ``gists.json``; None if it is missing or damaged. Raises CorruptTreeError, StoreError."""
    path = folder / GISTS
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError):
        data = None
    if isinstance(data, dict) and isinstance(data.get("format_version"), int) and data["format_version"] > 1:
        raise CorruptTreeError(f"{path}: format version {data['format_version']}, known is {_FORMAT_VERSION}")
    try:
        assert isinstance(data, dict) and data["format_version"] == _FORMAT_VERSION
        known = [bytes.fromhex(item) for item in data["versions"]]
        assert len(known) <= MOST_NETS and all(len(item) == 16 and item != MIXED for item in known)
        return known
    except (AssertionError, KeyError, TypeError, ValueError):
        logger.warning("%s is damaged; the gists of refreshes under way are made again", path)
        return None


def write_nets(folder: Path, known: list[bytes], durability: Durability) -> None:
    """Replace ``gists.json`` in one step. Raises StoreError."""
    draft = folder / f"{GISTS}.tmp"
    try:
        with open(draft, "w", encoding="utf-8") as file:
            text = {"format_version": _FORMAT_VERSION, "versions": [item.hex() for item in known]}
            file.write(json.dumps(text) + "\n")
            file.flush()
            os.fsync(file.fileno())  # rare, and an empty file after a power cut would cost all gists of a refresh
        draft.replace(folder / GISTS)
        if durability.always:
            sync_path(folder)
    except OSError as error:
        raise StoreError(f"cannot write {folder / GISTS}: {error.strerror}") from error


def version_of(known: list[bytes], fingerprint: bytes) -> int:
    """The latest version that is of this net; 0 if there is none."""
    return next((at for at in range(len(known), 0, -1) if known[at - 1] == fingerprint), 0)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One at a time changes ``gists.json`` and what headers say."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"cannot lock {folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        unlock(fd)
