"""Locks of a tree folder, between processes and between the handles of one process (``flock`` is per open file).

``writer.lock``  exclusive, held by the one handle that may append.
``use.lock``     shared by every open handle. Who takes rows or the whole tree away wants it exclusively, so nobody ever
                 has rows vanish from under a view.

A process that dies lets go of both. Unlocking is done by hand everywhere: a child forked meanwhile shares the open
file, and closing our copy alone would leave the lock with the child.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megacontext_vllm.errors import StoreError, TreeInUseError, TreeLockedError, UnknownTreeError

WRITER = "writer.lock"
USE = "use.lock"


def take_lock(fd: int, how: int, refusal: str) -> None:
    """Lock an open file, ``fcntl.LOCK_EX`` or ``LOCK_SH``, at once. Raises TreeLockedError(refusal), OSError."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TreeLockedError(refusal) from None


def lock_level(fd: int, path: Path) -> None:
    """Become the only writer of an open level file. Raises TreeLockedError, OSError."""
    take_lock(fd, fcntl.LOCK_EX, f"{path} is being written by someone else; a tree has one writer")


def lock_writer(path: Path) -> int:
    """Take the writer lock of tree folder ``path``; returns its file descriptor.

    Raises TreeLockedError, FileNotFoundError (no such folder, or deleted meanwhile), OSError.
    """
    fd = os.open(path / WRITER, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        take_lock(fd, fcntl.LOCK_EX, f"{path} has another writer; wait until it is done, or use another store")
        # The folder may have been deleted between open and lock; then this lock guards nothing.
        if not os.path.samestat(os.fstat(fd), os.stat(path / WRITER)):
            raise FileNotFoundError(path / WRITER)
    except BaseException:
        os.close(fd)
        raise
    return fd


def lock_use(path: Path) -> int:
    """Say that a handle is open; returns a file descriptor, -1 where the store cannot be written and has no lock file.

    Raises TreeLockedError (somebody is taking rows away), FileNotFoundError (no such folder), OSError.
    """
    try:
        fd = os.open(path / USE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        try:  # a store of someone else's, or a read-only file system: the lock file itself needs no writing
            fd = os.open(path / USE, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            if not path.is_dir():
                raise
            return -1
    try:
        take_lock(fd, fcntl.LOCK_SH, f"{path} is being curated, repaired or deleted; try again when that is done")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unlock(fd: int) -> None:
    """Let go of a lock; -1 is none."""
    if fd < 0:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def claim(path: Path) -> Iterator[None]:
    """Be the only one who has the tree in ``path``, in any process, for the length of the block.

    Raises TreeInUseError (somebody has it open), UnknownTreeError (no such folder), StoreError.
    """
    writer = use = -1
    try:
        try:
            writer = lock_writer(path)
            use = os.open(path / USE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (TreeLockedError, BlockingIOError):
            raise TreeInUseError(f"{path} is in use; try again when the requests that use it are done") from None
        except FileNotFoundError:
            raise UnknownTreeError(f"there is no tree in {path}") from None
        except OSError as error:
            raise StoreError(f"cannot lock {path}: {error.strerror}") from error
        yield
    finally:
        unlock(use)
        unlock(writer)
