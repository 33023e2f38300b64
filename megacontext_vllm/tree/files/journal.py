"""Redo journal for the one case in which committed rows are overwritten: a gist is made anew (``LODn.journal``).

Rows and their checksums cannot change in one step, so the new rows are written here first, with a checksum of their
own. Whoever opens the file for writing next does the work again, if its journal is whole; a reader that meets a
half-written page takes it from here. An empty or missing journal says that nothing is under way.

Little-endian: magic ``MCTJ`` | level u32 | first row u64 | rows u64 | crc32 of the rows | crc32 of these 28 bytes |
rows.
"""

import os
import struct
import zlib
from pathlib import Path

from megacontext_vllm.tree.files.checksums import page_rows, write_all
from megacontext_vllm.tree.files.header import Header

_MAGIC = b"MCTJ"
_HEAD = struct.Struct("<4sIQQI")
_HEAD_BYTES = _HEAD.size + 4


def journal_path(level_file: Path) -> Path:
    """``LODn.journal`` for ``LODn.ctx``."""
    return level_file.with_suffix(".journal")


def write_journal(fd: int, level: int, start: int, count: int, rows: memoryview) -> None:
    """Note ``count`` rows from row ``start`` on; ``rows``: their bytes. Raises OSError."""
    head = _HEAD.pack(_MAGIC, level, start, count, zlib.crc32(rows))
    write_all(fd, rows, _HEAD_BYTES)
    write_all(fd, head + struct.pack("<I", zlib.crc32(head)), 0)


def parse_journal(data: bytes, header: Header) -> tuple[int, int, bytes] | None:
    """``(first row, rows, bytes)``; None unless it is whole and fits the level file that has this ``header``."""
    if len(data) < _HEAD_BYTES:
        return None
    magic, level, start, count, checksum = _HEAD.unpack_from(data)
    (check,) = struct.unpack_from("<I", data, _HEAD.size)
    rows = data[_HEAD_BYTES : _HEAD_BYTES + count * header.row_bytes]
    if (magic, level) != (_MAGIC, header.level) or check != zlib.crc32(data[: _HEAD.size]):
        return None
    if len(rows) != count * header.row_bytes or checksum != zlib.crc32(rows):
        return None
    return start, count, rows


def load_journal(level_file: Path, header: Header) -> tuple[int, int, bytes] | None:
    """What the journal beside ``level_file`` says is under way. Raises OSError."""
    try:
        with open(journal_path(level_file), "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return None
            return parse_journal(file.read(), header)
    except FileNotFoundError:
        return None


def read_journal(level_file: Path, header: Header, start: int, stop: int) -> bytes | None:
    """Bytes of page rows ``[start, stop)`` if the journal has all of them. Raises OSError."""
    found = load_journal(level_file, header)
    if found is None:
        return None
    first, count, rows = found
    # Only whole pages are journalled, so a page is in it entirely or not at all.
    assert start % page_rows(header.level) == 0
    if not first <= start <= stop <= first + count:
        return None
    return rows[(start - first) * header.row_bytes : (stop - first) * header.row_bytes]
