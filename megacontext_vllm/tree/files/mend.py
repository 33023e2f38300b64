"""Last resorts for a level file that is damaged: forget its end, or believe what it holds."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.checksums import Checksums, checksum_path, page_checksums, write_all
from megacontext_vllm.tree.files.header import COUNT_OFFSET, HEADER_BYTES, Header
from megacontext_vllm.tree.files.journal import journal_path
from megacontext_vllm.tree.files.level_reader import has_checksums, read_all, read_header, require_rows
from megacontext_vllm.tree.files.locks import lock_level, unlock

_CHUNK_BYTES = 1 << 24


def cut_level(path: Path, count: int) -> int:
    """Forget all rows from ``count`` on, and those that the file is too short for; returns the rows that are left.

    The checksums are made anew from the rows that stay, so verify those first. Raises CorruptTreeError when the header
    is damaged, TreeLockedError, StoreError.
    """
    with _locked(path) as fd:
        header = read_header(fd, path)
        there = (os.fstat(fd).st_size - HEADER_BYTES) // header.row_bytes
        header = replace(header, count=min(count, header.count, max(there, 0)))
        journal_path(path).unlink(missing_ok=True)  # it may name rows that will be gone
        # Killed between these two, the file has lost its checksums and is repaired again.
        write_all(fd, header.pack_count(), COUNT_OFFSET)
        os.ftruncate(fd, header.file_bytes(header.count))
        _take_rows_as_they_are(path, fd, header)
        return header.count


def rebuild_checksums(path: Path, only_if_lost: bool = False) -> None:
    """Make the checksums of a level file anew, taking its rows as they are; ``only_if_lost``: if it has none.

    Raises CorruptTreeError when the header is damaged or rows are missing, TreeLockedError, StoreError.
    """
    with _locked(path) as fd:
        header = read_header(fd, path)
        if only_if_lost and has_checksums(path, header):
            return
        require_rows(fd, path, header, header.count)
        _take_rows_as_they_are(path, fd, header)


def remove_level(path: Path) -> None:
    """Delete a level file and what lies beside it, there or not. Raises OSError."""
    for file in (path, checksum_path(path), journal_path(path)):  # the rows first: without them nothing is left
        file.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            lock_level(fd, path)
            yield fd
        finally:
            unlock(fd)
    except OSError as error:
        raise StoreError(f"cannot repair {path}: {error.strerror}") from error


def _take_rows_as_they_are(path: Path, fd: int, header: Header) -> None:
    sidecar = os.open(checksum_path(path), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        sums = Checksums(sidecar, header.level, header.row_bytes)
        sums.reset()
        at_once = max(_CHUNK_BYTES // sums.page_bytes, 1) * sums.rows
        for first in range(0, header.count, at_once):
            stop = min(first + at_once, header.count)
            data = read_all(fd, (stop - first) * header.row_bytes, header.file_bytes(first))
            pages, tail = page_checksums(np.frombuffer(data, np.uint8), header.level, header.row_bytes)
            sums.write_pages(first // sums.rows, pages)
            if stop == header.count:
                sums.write_tail(-1, stop, tail)
    finally:
        os.close(sidecar)
