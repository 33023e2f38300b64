"""One level of a tree on disk: a 64-byte header, then rows of equal size. Row ``i`` is at ``64 + i * row_bytes``.

Commit protocol: rows are written first, then the row count with one 8-byte write. A reader trusts the count only, so
it never sees a row that is not complete; a writer that died leaves surplus bytes, which the next writer cuts off.
This holds when a process is killed at any point. After a power cut without ``fsync`` the file may be shorter than its
count, which is detected, not repaired: LOD0 comes again with the next request, gists are derived.
"""

import fcntl
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError, TreeLockedError
from megacontext_vllm.tree.nodes import BLOCK

HEADER_BYTES = 64
FORMAT_VERSION = 1
MAGIC = b"MCTX"
_HEADER = struct.Struct("<4sHHHHIQ16s16sII")
_COUNT = struct.Struct("<Q")
_COUNT_OFFSET = 16
assert _HEADER.size == HEADER_BYTES


class RowType(IntEnum):
    """What one value of a row is; the number is the dtype code in the header."""

    UINT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT32 = 3

    @property
    def numpy(self) -> np.dtype[Any]:
        """Little-endian dtype of the rows. NumPy has no bfloat16: those rows are their raw bits in uint16."""
        return np.dtype(("<u4", "<f2", "<u2", "<f4")[self])


@dataclass(frozen=True)
class Header:
    """The 64 bytes in front of the rows. ``dim`` is 1 for LOD0 (token ids), else the embedding width."""

    level: int
    dtype: RowType
    dim: int
    count: int
    model_fingerprint: bytes
    gist_fingerprint: bytes

    @property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.numpy.itemsize

    def file_bytes(self, count: int) -> int:
        """Size of a file that holds ``count`` rows and nothing more."""
        return HEADER_BYTES + count * self.row_bytes

    def pack(self) -> bytes:
        """The header as 64 little-endian bytes."""
        assert len(self.model_fingerprint) == len(self.gist_fingerprint) == 16
        assert self.dim > 0
        assert self.level > 0 or (self.dtype, self.dim) == (RowType.UINT32, 1)
        fields = (MAGIC, FORMAT_VERSION, self.level, BLOCK, int(self.dtype), self.dim)
        tail = (self.count, self.model_fingerprint, self.gist_fingerprint)
        return _HEADER.pack(*fields, *tail, _checksum(_HEADER.pack(*fields, *tail, 0, 0)), 0)

    @staticmethod
    def unpack(data: bytes) -> "Header":
        """Parse 64 bytes. Raises CorruptTreeError for a wrong size, magic, version, checksum, block size or dtype."""
        if len(data) != HEADER_BYTES:
            raise CorruptTreeError(f"header has {len(data)} bytes instead of {HEADER_BYTES}")
        magic, version, level, block, dtype, dim, count, model, gist, checksum, _ = _HEADER.unpack(data)
        if magic != MAGIC:
            raise CorruptTreeError(f"not a tree file: it starts with {magic!r} instead of {MAGIC!r}")
        if version != FORMAT_VERSION:
            raise CorruptTreeError(f"format version {version}; this release reads version {FORMAT_VERSION}")
        if checksum != _checksum(data):
            raise CorruptTreeError("header checksum does not match")
        known = block == BLOCK and dtype <= max(RowType) and dim > 0
        if not known or (level == 0 and (dtype, dim) != (RowType.UINT32, 1)):
            raise CorruptTreeError(f"unsupported layout: level {level}, block size {block}, dtype {dtype}, dim {dim}")
        return Header(level, RowType(dtype), dim, count, model, gist)


def _checksum(header: bytes) -> int:
    """crc32 of all that never changes; the count is left out so that committing stays one 8-byte write."""
    return zlib.crc32(header[24:56], zlib.crc32(header[:16]))


def _read_header(fd: int, path: Path) -> Header:
    """Header of an open file, checked against the file's size. Raises CorruptTreeError."""
    try:
        header = Header.unpack(os.pread(fd, HEADER_BYTES, 0))
    except CorruptTreeError as error:
        raise CorruptTreeError(f"{path}: {error}") from None
    _require_rows(fd, path, header, header.count)
    return header


def _require_rows(fd: int, path: Path, header: Header, count: int) -> None:
    size = os.fstat(fd).st_size
    if size < header.file_bytes(count):
        raise CorruptTreeError(f"{path}: {size} bytes are too few for the {count} rows it claims to hold")


def _write_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    view = memoryview(data).cast("B")
    while len(view):  # one pwrite moves at most 2 GiB and may stop early on a nearly full disk
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def commit(fd: int, count: int, fsync: bool = False) -> None:
    """Make the first ``count`` rows visible: the last step of every write."""
    if fsync:
        os.fsync(fd)  # or the disk may keep the count and lose the rows
    _write_all(fd, _COUNT.pack(count), _COUNT_OFFSET)
    if fsync:
        os.fsync(fd)


@contextmanager
def open_for_writing(path: Path, expected: Header) -> Iterator[tuple[int, int]]:
    """Open or create a level file as its only writer; yields ``(file descriptor, committed rows)``.

    An unfinished write is cut off on entry, and again when the body fails. Raises TreeLockedError when another write
    is under way, FingerprintMismatchError or CorruptTreeError when the file is not what ``expected`` says, and
    StoreError for anything the operating system refuses, in the body too.
    """
    committed = 0
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TreeLockedError(f"{path} is being written by someone else; a tree has one writer") from None
            if os.fstat(fd).st_size == 0:  # new, or its creator died before the header: nothing was committed
                try:
                    _write_all(fd, replace(expected, count=0).pack(), 0)
                except OSError:
                    os.ftruncate(fd, 0)
                    raise
            found = _read_header(fd, path)
            _require_same(path, found, expected)
            committed = found.count
            _cut_back(fd, found)
            try:
                yield fd, committed
            except OSError:
                _cut_back(fd, found)
                raise
        finally:
            # Unlocking by hand: a child forked meanwhile shares the lock, and closing our copy would not release it.
            try:
                fcntl.flock(fd, fcntl.LOCK_UN)
            finally:
                os.close(fd)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}. Its {committed} committed rows are intact; "
            "free disk space or check the rights of the store folder, then try again"
        ) from error


def _cut_back(fd: int, header: Header) -> None:
    if os.fstat(fd).st_size > header.file_bytes(header.count):
        os.ftruncate(fd, header.file_bytes(header.count))


def _require_same(path: Path, found: Header, expected: Header) -> None:
    if found.model_fingerprint != expected.model_fingerprint:
        raise FingerprintMismatchError(f"{path} was written for another model (tokenizer or embedding table differ)")
    if found.gist_fingerprint != expected.gist_fingerprint:
        raise FingerprintMismatchError(f"{path} was written by another GistNet; drop the gists to rebuild them")
    if (found.level, found.dtype, found.dim) != (expected.level, expected.dtype, expected.dim):
        raise CorruptTreeError(
            f"{path} holds level {found.level} {found.dtype.name} rows of width {found.dim}, "
            f"expected level {expected.level} {expected.dtype.name} of width {expected.dim}"
        )


def write_rows(path: Path, header_without_count: Header, start: int, rows: NDArray[Any], fsync: bool = False) -> int:
    """Append ``rows`` at row ``start`` and commit them; returns the new row count.

    ``rows``: ``[n, dim]``, for LOD0 ``[n]``, of ``header_without_count.dtype.numpy``; n may be 0, which creates or
    repairs the file. The header's own count is ignored. Keeps nothing open, so that any process can call it for its
    level. Raises StoreError when ``start`` is not the committed count or the disk is full (committed rows stay
    intact), TreeLockedError, FingerprintMismatchError, CorruptTreeError.
    """
    header = header_without_count
    shape = (len(rows),) if header.level == 0 else (len(rows), header.dim)
    assert (rows.shape, rows.dtype) == (shape, header.dtype.numpy), (rows.shape, rows.dtype, header)
    with open_for_writing(path, header) as (fd, committed):
        if start != committed:
            raise StoreError(f"{path}: rows start at {start}, but {committed} rows are committed; a level only grows")
        if rows.size:
            _write_all(fd, np.ascontiguousarray(rows).data, header.file_bytes(start))
            commit(fd, start + len(rows), fsync)
        return start + len(rows)


def read_count(path: Path) -> int:
    """Committed rows, 0 when there is no file yet. One 8-byte read and no checks: made for polling."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        data = os.pread(fd, _COUNT.size, _COUNT_OFFSET)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)
    return int(_COUNT.unpack(data)[0]) if len(data) == _COUNT.size else 0


class LevelReader:
    """Zero-copy view of the committed rows of one level file, which another process may be extending.

    Raises FileNotFoundError, CorruptTreeError. It keeps the file that it opened: after gists were dropped, open anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.header = _read_header(self._fd, path)
            self.count = self.header.count
            """Committed rows as of the last ``refresh()``."""
            self._rows = self._map(self.count)
        except BaseException:
            self.close()
            raise

    def _map(self, count: int) -> NDArray[Any]:
        """Map exactly ``count`` rows, so that cutting off an unfinished write never pulls pages from under a view."""
        _require_rows(self._fd, self.path, self.header, count)
        data = mmap.mmap(self._fd, self.header.file_bytes(count), access=mmap.ACCESS_READ)
        shape = (count,) if self.header.level == 0 else (count, self.header.dim)
        return np.ndarray(shape, self.header.dtype.numpy, buffer=data, offset=HEADER_BYTES)

    def refresh(self) -> int:
        """Read the committed count from disk; returns it. Raises CorruptTreeError when the header is gone."""
        assert self._fd >= 0, "closed"
        data = os.pread(self._fd, _COUNT.size, _COUNT_OFFSET)
        if len(data) < _COUNT.size:
            raise CorruptTreeError(f"{self.path} was cut off within its header")
        self.count = int(_COUNT.unpack(data)[0])
        return self.count

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)`` as a read-only view ``[n, dim]``, for LOD0 ``[n]``; valid even after ``close()``.

        Raises IndexError beyond ``count``, CorruptTreeError when the file lost committed rows.
        """
        assert self._fd >= 0, "closed"
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"rows [{start}, {stop}) of {self.path}, which has {self.count}")
        if stop > len(self._rows):
            self._rows = self._map(self.count)
        return self._rows[start:stop]

    def close(self) -> None:
        """Let go of the file; the mapping goes with the last view."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
        self._rows = np.empty(0)
