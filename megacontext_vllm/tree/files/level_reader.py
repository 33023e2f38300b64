"""Reading a level file that another process may be extending, or refreshing.

``rows`` gives views of the mapped file: nothing is copied, nothing is checked. ``read`` gives checked copies: every
page it touches is compared with its checksum, and an unreadable disk is an error and not the end of the process, which
is what it is for a view (the kernel answers a failed page of a mapping with SIGBUS).
"""

import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files.checksums import Checksums, checksum_of, checksum_path, checksums_of_pages
from megacontext_vllm.tree.files.header import (
    COUNT_BYTES,
    COUNT_OFFSET,
    HEADER_BYTES,
    Header,
    TornHeaderError,
    unpack_count,
)
from megacontext_vllm.tree.files.journal import read_journal

# A commit is one small write, caught half-way only while it is copied; a refresh is several, and may be preempted.
_TORN_TRIES, _TORN_PAUSE_SECONDS = 10, 0.0002
_TRIES, _PAUSE_SECONDS = 20, 0.001
_CHUNK_BYTES = 1 << 23


def read_header(fd: int, path: Path) -> Header:
    """Header of an open file. Raises CorruptTreeError, OSError.

    A commit may be caught half-way, so a checksum that does not match is looked at again before it is believed.
    """
    for tries_left in reversed(range(_TORN_TRIES)):
        try:
            return Header.unpack(os.pread(fd, HEADER_BYTES, 0))
        except TornHeaderError as error:
            if not tries_left:
                raise CorruptTreeError(f"{path}: {error}") from None
            time.sleep(_TORN_PAUSE_SECONDS)
        except CorruptTreeError as error:
            raise CorruptTreeError(f"{path}: {error}") from None
    raise AssertionError("unreachable")


def read_committed(fd: int, path: Path) -> int:
    """Committed rows of an open file; one small read. Raises CorruptTreeError, OSError."""
    for _ in range(_TORN_TRIES):
        count = unpack_count(os.pread(fd, COUNT_BYTES, COUNT_OFFSET))
        if count is not None:
            return count
        time.sleep(_TORN_PAUSE_SECONDS)
    raise CorruptTreeError(f"{path} was cut off within its header, or its row count is damaged")


def read_count(path: Path) -> int:
    """Committed rows, 0 when there is no file yet, or only an empty one. Made for polling; raises StoreError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        if os.fstat(fd).st_size == 0:  # its creator is about to write the header, or died before
            return 0
        return read_committed(fd, path)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    finally:
        os.close(fd)


def require_rows(fd: int, path: Path, header: Header, count: int) -> None:
    """Raise CorruptTreeError if the file is too short for ``count`` rows."""
    size = os.fstat(fd).st_size
    if size < header.file_bytes(count):
        raise CorruptTreeError(f"{path}: {size} bytes are too few for the {count} rows it claims to hold")


def has_checksums(path: Path, header: Header) -> bool:
    """Whether the level file has a sidecar of its level; not whether the rows match. Raises OSError."""
    try:
        fd = os.open(checksum_path(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return Checksums(fd, header.level, header.row_bytes).is_valid()
    finally:
        os.close(fd)


def read_all(fd: int, size: int, offset: int) -> bytes:
    """``size`` bytes from ``offset``, fewer only where the file ends. Raises OSError."""
    parts = []
    while size:
        part = os.pread(fd, min(size, _CHUNK_BYTES), offset)
        if not part:
            break
        parts.append(part)
        size, offset = size - len(part), offset + len(part)
    return b"".join(parts)


class LevelReader:
    """Zero-copy view of the committed rows of one level file, which another process may be extending.

    Raises FileNotFoundError, CorruptTreeError, OSError. It keeps the file that it opened: after gists were dropped,
    open anew.
    """

    def __init__(self, path: Path) -> None:
        self._open(path)
        try:
            require_rows(self._fd, path, self.header, self.count)
        except BaseException:
            self.close()
            raise

    def _open(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._checksums: Checksums | None = None
        self._rows: NDArray[Any] = np.empty(0)
        try:
            self.header = read_header(self._fd, path)
        except BaseException:
            self.close()
            raise
        self.count = self.header.count
        """Committed rows as last seen, by ``refresh()`` or by a checked read."""
        self._rows = self._map(0)

    @classmethod
    def salvage(cls, path: Path) -> "LevelReader":
        """Open a file that may have lost rows at its end: ``count`` rows are there, ``header.count`` should be."""
        reader = cls.__new__(cls)
        reader._open(path)
        there = (os.fstat(reader._fd).st_size - HEADER_BYTES) // reader.header.row_bytes
        reader.count = min(reader.header.count, max(there, 0))
        return reader

    def _map(self, count: int) -> NDArray[Any]:
        """Map exactly ``count`` rows, so that cutting off an unfinished write never pulls pages from under a view."""
        shape = (count,) if self.header.level == 0 else (count, self.header.dim)
        if count == 0:
            return np.empty(shape, self.header.dtype.numpy)
        require_rows(self._fd, self.path, self.header, count)
        data = mmap.mmap(self._fd, self.header.file_bytes(count), access=mmap.ACCESS_READ)
        return np.ndarray(shape, self.header.dtype.numpy, buffer=data, offset=HEADER_BYTES)

    def refresh(self) -> int:
        """Read the committed count from disk; returns it. Raises CorruptTreeError (the header is gone), StoreError."""
        assert self._fd >= 0, "closed"
        try:
            self.count = read_committed(self._fd, self.path)
        except OSError as error:
            raise StoreError(f"cannot read {self.path}: {error.strerror}") from error
        return self.count

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)`` as a read-only view ``[n, dim]``, for LOD0 ``[n]``; valid even after ``close()``.

        Not checked, and a gist may change under the view when it is refreshed. Raises IndexError beyond ``count``,
        CorruptTreeError when the file lost committed rows.
        """
        self._require(start, stop)
        if stop > len(self._rows):
            self._rows = self._map(self.count)
        return self._rows[start:stop]

    def _require(self, start: int, stop: int) -> None:
        assert self._fd >= 0, "closed"
        if not 0 <= start <= stop <= self.count:
            raise IndexError(f"rows [{start}, {stop}) of {self.path}, which has {self.count}")

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Rows ``[start, stop)`` as a checked copy ``[n, dim]``, for LOD0 ``[n]``.

        Raises IndexError beyond ``count``; CorruptTreeError, with the rows, where a page differs from its checksum;
        StoreError where the disk cannot be read.
        """
        self._require(start, stop)
        header = self.header
        shape = (stop - start,) if header.level == 0 else (stop - start, header.dim)
        out = np.empty(shape, header.dtype.numpy)
        if start == stop:
            return out
        page = self.page_rows
        at_once = max(_CHUNK_BYTES // (page * header.row_bytes), 1)
        for first in range(start // page, -(-stop // page), at_once):
            last = min(first + at_once, -(-stop // page))
            at, end = max(start, first * page), min(stop, last * page)
            rows = np.frombuffer(self._checked_pages(first, last), header.dtype.numpy).reshape(-1, *shape[1:])
            out[at - start : end - start] = rows[at - first * page : end - first * page]
        return out

    def bad_pages(self, first: int, stop: int) -> list[int]:
        """Which of the pages ``[first, stop)``, as far as they exist, cannot be read or differ from their checksum."""
        bad = []
        for page in range(first, min(stop, self.page_count)):
            try:
                self._checked_page(page)
            except StoreError:
                bad.append(page)
        return bad

    def checksums(self, count: int) -> tuple[NDArray[np.uint32], int]:
        """Checksums of the first ``count`` rows: uint32 ``[complete pages]``, and of the rows behind those.

        Raises CorruptTreeError if they are missing, or if the last rows differ from theirs; pages are not looked at.
        """
        sums = self._sidecar()
        full = count // sums.rows
        pages = sums.pages(0, full) if sums.fd >= 0 else np.empty(0, np.uint32)
        if len(pages) < full:
            raise CorruptTreeError(f"{self.path} has lost its checksums; run: megacontext tree repair --trust")
        rest = self.read(full * sums.rows, count)
        return pages, checksum_of(np.ascontiguousarray(rest).data.cast("B")) if len(rest) else 0

    @property
    def has_sums(self) -> bool:
        """Whether there are checksums to compare pages with."""
        return self._sidecar().fd >= 0

    @property
    def page_count(self) -> int:
        """Pages over ``count`` rows, the unfinished last one included."""
        return -(-self.count // self._sidecar().rows)

    @property
    def page_rows(self) -> int:
        """Rows of a complete page."""
        return self._sidecar().rows

    def _sidecar(self) -> Checksums:
        """The sidecar as of now; opened on first use and again while there is none, or none of this version."""
        if self._checksums is None:
            level, row_bytes = self.header.level, self.header.row_bytes
            fd = -1
            try:
                fd = os.open(checksum_path(self.path), os.O_RDONLY | os.O_CLOEXEC)
                sums = Checksums(fd, level, row_bytes)
                if sums.is_of_another_version():
                    os.close(fd)
                    return Checksums(-1, level, row_bytes)
            except FileNotFoundError:
                return Checksums(-1, level, row_bytes)
            except OSError as error:
                if fd >= 0:
                    os.close(fd)
                raise StoreError(f"cannot read {checksum_path(self.path)}: {error.strerror}") from error
            self._checksums = sums
        return self._checksums

    def _checked_pages(self, first: int, stop: int) -> bytes:
        """Bytes of pages ``[first, stop)``, all matching their checksums. Raises CorruptTreeError, StoreError."""
        sums, header = self._sidecar(), self.header
        size = sums.page_bytes
        try:
            complete = min(stop, self.count // sums.rows)
            if complete > first and sums.fd >= 0:  # the usual case: two reads, however many pages
                data = read_all(self._fd, (complete - first) * size, header.file_bytes(first * sums.rows))
                expected = sums.pages(first, complete).tolist()
                if len(data) == (complete - first) * size and checksums_of_pages(data, size) == expected:
                    return data + b"".join(self._checked_page(page) for page in range(complete, stop))
        except OSError:
            pass  # page by page, to say which one it is
        return b"".join(self._checked_page(page) for page in range(first, stop))

    def _checked_page(self, page: int) -> bytes:
        sums, header = self._sidecar(), self.header
        start = page * sums.rows
        stop = min(start + sums.rows, self.count)
        if sums.fd < 0:
            raise CorruptTreeError(f"{self.path} has no checksums ({checksum_path(self.path).name} is missing)")
        try:
            for _ in range(_TRIES):
                data = read_all(self._fd, (stop - start) * header.row_bytes, header.file_bytes(start))
                if len(data) == (stop - start) * header.row_bytes:
                    if stop - start < sums.rows:
                        expected = sums.tail(stop)
                    else:
                        expected = next(iter(sums.pages(page, page + 1).tolist()), None)
                    if expected == checksum_of(data):
                        return data
                # The writer may be at this very page. An append is consistent once we look at the new count, a refresh
                # once it is done; if its process died half-way, its journal has what should be here.
                if (again := read_journal(self.path, header, start, stop)) is not None:
                    return again
                time.sleep(_PAUSE_SECONDS)
                self.count = max(self.count, read_committed(self._fd, self.path))
                stop = min(start + sums.rows, self.count)
        except OSError as error:
            raise StoreError(f"cannot read rows {start} to {stop} of {self.path}: {error.strerror}") from error
        raise CorruptTreeError(f"rows {start} to {stop} of {self.path} differ from their checksum")

    def close(self) -> None:
        """Let go of the file; the mapping goes with the last view."""
        if self._fd >= 0:
            os.close(self._fd)
        if self._checksums is not None and self._checksums.fd >= 0:
            os.close(self._checksums.fd)
        self._fd = -1
        self._checksums = None
        self._rows = np.empty(0)
