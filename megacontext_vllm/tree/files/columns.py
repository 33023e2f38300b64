"""Columns: one small value per node of a level, in ``LODn.<name>.col``. What is noted about nodes, never the truth.

Little-endian: magic ``MCTC`` | format version u16 | level u16 | dtype code u16 | zero u16 | name, 24 bytes, zero padded
| zero, 24 bytes | crc32 of bytes 0-59; from byte 64 on the values, that of node ``i`` at ``64 + i * itemsize``.

A file is as long as its last value, with holes before it; what is beyond its end, or in no file, reads as 0. A damaged
or foreign file counts as none: its values are 0 again. So 0 must be the harmless value.

Read by pread and written by pwrite, both coherent with every other process: a mapping would be no safer from
``kill -9``, and would turn a full disk or an unreadable sector into SIGBUS, which ends the process.
"""

import logging
import os
import re
import struct
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.checksums import write_all
from megacontext_vllm.tree.files.level_reader import read_all

logger = logging.getLogger(__name__)

_MAGIC = b"MCTC"
_VERSION = 1
_HEADER = struct.Struct("<4sHHHH24s24x")
_HEADER_BYTES = _HEADER.size + 4
_NAME = re.compile(r"[a-z][a-z_]{0,23}")
_DTYPES = (np.dtype("<u2"), np.dtype("<u4"), np.dtype("<f4"))
"""The dtype code in the header is the position here."""
_GAP = 4096  # values; two that are closer are read and written together, which is faster than two more system calls
_CHUNK = 1 << 20  # values written at once by ``fill``


def column_path(folder: Path, level: int, name: str) -> Path:
    """``LODn.<name>.col`` in a tree folder."""
    return folder / f"LOD{level}.{name}.col"


class Column:
    """An open column. A context manager; not thread-safe.

    ``writable`` creates the file, and puts an empty one in the place of a damaged one; that is logged. Otherwise
    neither is touched. Several processes may write: what is set by ``write`` stays, ``update`` may lose what another
    one changed within the same moment. Every method raises StoreError for what the operating system refuses.
    """

    def __init__(self, folder: Path, level: int, name: str, dtype: Any, writable: bool = False) -> None:
        assert _NAME.fullmatch(name), name
        self.path = column_path(folder, level, name)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._writable = writable
        start = _HEADER.pack(_MAGIC, _VERSION, level, _DTYPES.index(self.dtype), 0, name.encode())
        self._header = start + struct.pack("<I", zlib.crc32(start))
        self._fd = -1
        try:
            self._open()
        except OSError as error:
            self.close()
            raise self._refused(error) from error

    def _open(self) -> None:
        flags = os.O_CLOEXEC | (os.O_RDWR | os.O_CREAT if self._writable else os.O_RDONLY)
        try:
            self._fd = os.open(self.path, flags, 0o644)
        except FileNotFoundError:
            if self._writable:  # the folder is gone
                raise
            return
        found = os.pread(self._fd, _HEADER_BYTES, 0)
        if found == self._header:
            return
        if found and self._writable:
            logger.warning("%s is damaged or is something else; it starts anew, and all its values are 0", self.path)
            # A new file, not this one made empty: who has it open keeps what it reads.
            draft = self.path.with_suffix(".col.tmp")
            os.close(self._fd)
            self._fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            write_all(self._fd, self._header, 0)
            os.replace(draft, self.path)
        elif self._writable:
            write_all(self._fd, self._header, 0)
        else:
            if found:
                logger.warning("%s is damaged or is something else; its values are taken as 0", self.path)
            os.close(self._fd)
            self._fd = -1

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Values of nodes ``[start, stop)``: a copy, ``[n]``."""
        assert 0 <= start <= stop
        size = self.dtype.itemsize
        values = np.zeros(stop - start, self.dtype)
        if self._fd >= 0:
            try:
                data = read_all(self._fd, (stop - start) * size, _HEADER_BYTES + start * size)
            except OSError as error:
                raise self._refused(error) from error
            there = len(data) // size
            values[:there] = np.frombuffer(data, self.dtype, there)
        return values

    def write(self, start: int, values: NDArray[Any]) -> None:
        """Set the values from node ``start`` on; ``values``: ``[n]`` of the column's dtype."""
        assert self._writable and self._fd >= 0 and start >= 0
        assert values.ndim == 1 and values.dtype == self.dtype, (values.shape, values.dtype, self.dtype)
        if len(values):
            try:
                data = np.ascontiguousarray(values, self.dtype).data
                write_all(self._fd, data, _HEADER_BYTES + start * self.dtype.itemsize)
            except OSError as error:
                raise self._refused(error) from error

    def fill(self, start: int, stop: int, value: int | float) -> None:
        """Set nodes ``[start, stop)`` to one value."""
        chunk = np.full(min(max(stop - start, 0), _CHUNK), value, self.dtype)
        for at in range(start, stop, _CHUNK):
            self.write(at, chunk[: stop - at])

    def update(self, indices: NDArray[np.int64], change: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        """Replace the values of some nodes, ``indices`` ``[n]`` ascending without repeats: ``change(old)``, ``[n]``."""
        if not len(indices):
            return
        cuts = [0, *(np.flatnonzero(indices[1:] - indices[:-1] > _GAP) + 1).tolist(), len(indices)]
        pieces, old = [], []
        for first, last in pairwise(cuts):
            start = int(indices[first])
            values = self.read(start, int(indices[last - 1]) + 1)
            places = indices[first:last] - start
            pieces.append((start, values, places))
            old.append(values[places])
        new = change(np.concatenate(old)).astype(self.dtype, copy=False)
        assert new.shape == indices.shape
        for (start, values, places), first in zip(pieces, cuts):
            values[places] = new[first : first + len(places)]
            self.write(start, values)

    def sync(self) -> None:
        """Force it to the disk."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise self._refused(error) from error

    def close(self) -> None:
        """Let go of the file; may be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"cannot {'write' if self._writable else 'read'} {self.path}: {error.strerror}. "
            "Free disk space, or check the disk and the rights of the store folder"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
