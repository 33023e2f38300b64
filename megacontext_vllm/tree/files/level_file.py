"""Writing one level of a tree: a 64-byte header, then rows of equal size. Row ``i`` is at ``64 + i * row_bytes``.

Commit protocol: rows are written first, then their checksums (``checksums.py``), then the row count. A reader trusts
the count only, so it never sees a row that is not complete; a writer that died leaves surplus bytes, which the next
writer cuts off. This holds when a process is killed at any point. What a power cut can take depends on the fsync policy
(``durability.py``), and is found by the checksums.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError
from megacontext_vllm.tree.files.checksums import (
    Checksums,
    checksum_of,
    checksum_path,
    page_checksums,
    page_rows,
    write_all,
)
from megacontext_vllm.tree.files.durability import NEVER, Durability
from megacontext_vllm.tree.files.header import COUNT_OFFSET, MIXED, Header
from megacontext_vllm.tree.files.journal import journal_path, load_journal, write_journal
from megacontext_vllm.tree.files.level_reader import LevelReader, has_checksums, read_all, read_header, require_rows
from megacontext_vllm.tree.files.locks import lock_level, unlock


class LevelWriter:
    """A level file open for writing, by its only writer; created if it is missing. A context manager.

    Opening cuts off an unfinished write, finishes an interrupted overwrite and checks the last page, which is what a
    power cut would have taken. Raises TreeLockedError when another writer has it,
    FingerprintMismatchError or CorruptTreeError when the file is damaged or not what ``expected`` says (its count is
    ignored), and StoreError for anything the operating system refuses, here and in every method; what was committed
    stays intact.
    """

    def __init__(self, path: Path, expected: Header, durability: Durability = NEVER) -> None:
        self.path = path
        self._checksum_path = checksum_path(path)
        self.header = replace(expected, count=0)
        self._durability = durability
        self._fd = self._checksum_fd = -1
        self._tail = 0
        try:
            self._open(expected)
        except OSError as error:
            self.close()
            raise self._refused(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def count(self) -> int:
        """Committed rows."""
        return self.header.count

    def _open(self, expected: Header) -> None:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        lock_level(self._fd, self.path)
        if os.fstat(self._fd).st_size == 0:  # new, or its creator died before the header: nothing was committed
            try:
                write_all(self._fd, replace(expected, count=0).pack(), 0)
            except OSError:
                os.ftruncate(self._fd, 0)
                raise
        found = read_header(self._fd, self.path)
        _require_same(self.path, found, expected)
        require_rows(self._fd, self.path, found, found.count)
        self.header = found
        self._cut_back()
        if self.count and not has_checksums(self.path, found):
            raise CorruptTreeError(f"{self.path} has lost its checksums; run: megacontext tree repair --trust")
        self._checksum_fd = os.open(self._checksum_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._checksums = Checksums(self._checksum_fd, found.level, found.row_bytes)
        if not self.count:
            self._checksums.reset()
        self._redo()
        self._check_tail()

    def append(self, rows: NDArray[Any], start: int | None = None) -> int:
        """Commit ``rows``, ``[n, dim]`` (LOD0: ``[n]``) of the header's dtype, behind the last one; returns the count.

        ``start``: where the caller believes the end to be; StoreError if it is elsewhere.
        """
        header = self.header
        shape = (len(rows),) if header.level == 0 else (len(rows), header.dim)
        assert (rows.shape, rows.dtype) == (shape, header.dtype.numpy), (rows.shape, rows.dtype, header)
        if start is not None and start != header.count:
            raise StoreError(
                f"{self.path}: rows start at {start}, but {header.count} rows are committed; a level only grows"
            )
        if not rows.size:
            return header.count
        data = memoryview(np.ascontiguousarray(rows).data).cast("B")
        grown = replace(header, count=header.count + len(rows))
        try:
            write_all(self._fd, data, header.file_bytes(header.count))
            tail = self._checksums.append(header.count, self._tail, data)
            if self._durability.always:  # or the disk may keep the count and lose the rows
                os.fsync(self._checksum_fd)
                os.fsync(self._fd)
            write_all(self._fd, grown.pack_count(), COUNT_OFFSET)
        except OSError as error:
            self._undo()
            raise self._refused(error) from error
        self.header, self._tail = grown, tail
        self._sync()
        return grown.count

    def fill(self, count: int, copy: Callable[[int], None], pages: NDArray[np.uint32], tail: int) -> None:
        """Commit ``count`` rows that ``copy`` puts into the empty file, given its descriptor.

        ``pages``: their checksums, uint32 ``[complete pages]``; ``tail``: of the rows behind those.
        """
        assert self.count == 0
        filled = replace(self.header, count=count)
        try:
            copy(self._fd)
            self._checksums.write_pages(0, pages)
            self._checksums.write_tail(0, count, tail)
            if self._durability.always:
                os.fsync(self._checksum_fd)
                os.fsync(self._fd)
            write_all(self._fd, filled.pack_count(), COUNT_OFFSET)
        except OSError as error:
            self._undo()
            raise self._refused(error) from error
        self.header, self._tail = filled, tail
        self._sync()

    def overwrite(self, start: int, rows: NDArray[Any]) -> None:
        """Replace committed gist rows from ``start`` on; readers see each page as it was or as it is now.

        ``rows``: ``[n, dim]`` of the header's dtype. Not for LOD0, whose tokens never change.
        """
        header = self.header
        assert header.level > 0, "a written token never changes"
        assert (rows.shape, rows.dtype) == ((len(rows), header.dim), header.dtype.numpy)
        if start + len(rows) > header.count:
            raise StoreError(f"{self.path}: rows [{start}, {start + len(rows)}) of {header.count} cannot be replaced")
        if not len(rows):
            return
        page = page_rows(header.level)
        first, stop = start // page * page, min(-(-(start + len(rows)) // page) * page, header.count)
        try:
            whole = bytearray(read_all(self._fd, (stop - first) * header.row_bytes, header.file_bytes(first)))
            self._check_pages(first, stop, whole, start, start + len(rows))
            at = (start - first) * header.row_bytes
            data = memoryview(np.ascontiguousarray(rows).data).cast("B")
            whole[at : at + len(data)] = data
            fd = os.open(journal_path(self.path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                write_journal(fd, header.level, first, stop - first, memoryview(whole))
                if self._durability.always:
                    os.fsync(fd)
                self._replace(first, stop, bytes(whole))
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)
        except OSError as error:
            self.close()  # the journal, if it is whole, is carried out before anything else is written
            raise self._refused(error) from error
        self._sync()

    def _check_pages(self, first: int, stop: int, data: bytearray, start: int, end: int) -> None:
        """Compare pages of which some rows stay with their checksums, or damage in those would be made valid.

        ``data``: rows ``[first, stop)``; rows ``[start, end)`` of them are to be replaced.
        """
        rows = self._checksums.rows
        for at in range(first, stop, rows):
            last = min(at + rows, stop)
            if start <= at and last <= end:
                continue
            page = bytes(data[(at - first) * self.header.row_bytes : (last - first) * self.header.row_bytes])
            known = self._checksums.pages(at // rows, at // rows + 1) if last - at == rows else None
            expected = self._checksums.tail(last) if known is None else next(iter(known.tolist()), None)
            if expected != checksum_of(page):
                raise CorruptTreeError(f"rows {at} to {last} of {self.path} differ from their checksum")

    def _replace(self, first: int, stop: int, data: bytes) -> None:
        header = self.header
        pages, tail = page_checksums(np.frombuffer(data, np.uint8), header.level, header.row_bytes)
        write_all(self._fd, data, header.file_bytes(first))
        self._checksums.write_pages(first // page_rows(header.level), pages)
        if stop % page_rows(header.level):
            self._checksums.write_tail(header.count, header.count, tail)
            self._tail = tail
        if self._durability.always:
            os.fsync(self._checksum_fd)
            os.fsync(self._fd)

    def _redo(self) -> None:
        """Finish an overwrite that its process did not live to finish."""
        found = load_journal(self.path, self.header)
        if found is not None and found[0] + found[1] <= self.count and found[0] % page_rows(self.header.level) == 0:
            self._replace(found[0], found[0] + found[1], found[2])
        if journal_path(self.path).exists() and journal_path(self.path).stat().st_size:
            os.truncate(journal_path(self.path), 0)

    def set_gist_fingerprint(self, fingerprint: bytes) -> None:
        """Say which GistNet made the rows (16 bytes; ``MIXED``: several). One write, like a commit."""
        header = replace(self.header, gist_fingerprint=fingerprint)
        try:
            write_all(self._fd, header.pack(), 0)
        except OSError as error:
            raise self._refused(error) from error
        self.header = header
        self._sync()

    def _check_tail(self) -> None:
        """Compare the unfinished last page with its checksum, before anything is built on it."""
        rows = self._checksums.rows
        first = self.count // rows * rows
        data = read_all(self._fd, (self.count - first) * self.header.row_bytes, self.header.file_bytes(first))
        self._tail = checksum_of(data)
        if self._tail != self._checksums.tail(self.count):
            raise CorruptTreeError(f"rows {first} to {self.count} of {self.path} differ from their checksum")

    def _cut_back(self) -> None:
        if os.fstat(self._fd).st_size > self.header.file_bytes(self.count):
            os.ftruncate(self._fd, self.header.file_bytes(self.count))

    def _undo(self) -> None:
        try:
            write_all(self._fd, self.header.pack_count(), COUNT_OFFSET)
            self._cut_back()
        except OSError:
            pass  # the next writer does it

    def _sync(self) -> None:
        if self._durability.always:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise StoreError(f"{self.path} may not survive a power cut: {error.strerror}") from error
        self._durability.wrote(self.path, self._checksum_path)

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot write {self.path}: {error.strerror}. Its {self.count} committed rows are intact; "
            "free disk space or check the rights of the store folder, then try again"
        )

    def close(self) -> None:
        """Let go of the file and its lock; may be called twice."""
        fd, self._fd = self._fd, -1
        unlock(fd)
        fd, self._checksum_fd = self._checksum_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _require_same(path: Path, found: Header, expected: Header) -> None:
    if found.model_fingerprint != expected.model_fingerprint:
        raise FingerprintMismatchError(f"{path} was written for another model (tokenizer or embedding table differ)")
    if found.gist_fingerprint not in (expected.gist_fingerprint, MIXED) and expected.gist_fingerprint != MIXED:
        raise FingerprintMismatchError(f"{path} was written by another GistNet; refresh the tree or drop its gists")
    if (found.level, found.dtype, found.dim) != (expected.level, expected.dtype, expected.dim):
        raise CorruptTreeError(
            f"{path} holds level {found.level} {found.dtype.name} rows of width {found.dim}, "
            f"expected level {expected.level} {expected.dtype.name} of width {expected.dim}"
        )


def write_rows(path: Path, header_without_count: Header, start: int, rows: NDArray[Any]) -> int:
    """Append ``rows`` at row ``start`` and commit them, keeping nothing open; returns the new row count.

    ``rows``: ``[n, dim]``, for LOD0 ``[n]``, of ``header_without_count.dtype.numpy``; n may be 0, which creates or
    repairs the file. The header's own count is ignored. Raises what ``LevelWriter`` does.
    """
    with LevelWriter(path, header_without_count) as writer:
        return writer.append(rows, start)


def open_again(path: Path, durability: Durability = NEVER) -> LevelWriter:
    """Open an existing level file for writing, whatever made it. Raises StoreError, and what ``LevelWriter`` does."""
    try:
        reader = LevelReader(path)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        return LevelWriter(path, reader.header, durability)
    finally:
        reader.close()
