"""Where things lie in a store: ``<store>/trees/<namespace>/<tree id>``, and how a tree is taken away."""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path

from megacontext_vllm.errors import StoreError, UnknownTreeError
from megacontext_vllm.tree.files.locks import unlock
from megacontext_vllm.tree.tree import DELETED_SUFFIX

# Both become folder names, so nothing else may pass: no dots, no slashes.
_NAMESPACE = re.compile(r"default|[0-9a-f]{1,64}")
_TREE_ID = re.compile(r"[0-9a-f]{32}")

IMPORT_PREFIX = ".import-"
"""A folder that an archive is being unpacked into; its writer lock is held as long as somebody is at it."""


def is_namespace(text: str) -> bool:
    return _NAMESPACE.fullmatch(text) is not None


def is_tree_id(text: str) -> bool:
    return _TREE_ID.fullmatch(text) is not None


def tree_folder(trees: Path, namespace: str, tree_id: str) -> Path:
    """Folder of a tree, there or not. Raises UnknownTreeError for what cannot be one."""
    if not is_namespace(namespace) or not is_tree_id(tree_id):
        raise UnknownTreeError(f"no tree {tree_id!r}")
    return trees / namespace / tree_id


def disk_bytes(folder: Path) -> int:
    """What the files of a tree occupy on the disk, holes not counted; 0 if the folder is gone."""
    try:
        with os.scandir(folder) as files:
            return sum(file.stat(follow_symlinks=False).st_blocks * 512 for file in files)
    except OSError:
        return 0


def last_change(folder: Path) -> float:
    """When a tree last grew, in Unix seconds; 0 if that is not known."""
    try:
        return (folder / "LOD0.ctx").stat().st_mtime
    except OSError:
        return 0.0


def bury(folder: Path) -> Path:
    """Take a tree out of the store in one step; its files are still to be removed. The caller has claimed it.

    Returns the grave, for ``shutil.rmtree``; recovery clears it if nobody comes to do so. Raises StoreError.
    """
    grave = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}{DELETED_SUFFIX}")
    try:
        folder.rename(grave)
    except FileNotFoundError:
        raise UnknownTreeError(f"there is no tree in {folder}") from None
    except OSError as error:
        raise StoreError(f"cannot delete {folder}: {error.strerror}; check the rights of the store") from error
    return grave


def empty_grave(grave: Path) -> None:
    shutil.rmtree(grave, ignore_errors=True)


@contextmanager
def names_lock(trees: Path) -> Iterator[int]:
    """Be the only one, in any process, who names, pins, deletes or moves trees into place; held for moments.

    Yields the file descriptor of ``<store>/names.lock``, in which ``names.py`` notes what it is about to do.
    """
    fd = -1
    try:
        try:
            fd = os.open(trees.parent / "names.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            flock(fd, LOCK_EX)
        except OSError as error:
            raise StoreError(f"cannot lock the store {trees.parent}: {error.strerror}") from error
        yield fd
    finally:
        unlock(fd)
