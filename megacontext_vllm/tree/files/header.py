"""The 64 bytes in front of the rows of a level file, and what makes them trustworthy.

Little-endian: magic ``MCTX`` | format version u16 | level u16 | block size u16 | dtype code u16 | dim u32 | row count
u64 | model fingerprint 16 bytes | gist fingerprint 16 bytes | crc32 of all that but the count | crc32 of the count.

Every bit is covered by one of the two checksums. They are two because only the count changes when rows are committed:
count and its checksum go out in one write of the last 48 bytes, which lie in one page and, on a disk, in one sector.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from megacontext_vllm.errors import CorruptTreeError
from megacontext_vllm.tree.nodes import BLOCK

HEADER_BYTES = 64
FORMAT_VERSION = 2
"""Version 1, never released, left bytes 60-63 zero and its count unprotected."""
MAGIC = b"MCTX"
COUNT_OFFSET = 16
MIXED = bytes(16)
"""Gist fingerprint of a file whose rows come from more than one GistNet: ``gists.py`` knows which is which."""


class TornHeaderError(CorruptTreeError):
    """A checksum of the header does not match: it is damaged, or was read while a commit was under way."""


_HEADER = struct.Struct("<4sHHHHIQ16s16sII")
_COUNT_PART = struct.Struct("<Q16s16sII")
assert _HEADER.size == HEADER_BYTES == COUNT_OFFSET + _COUNT_PART.size


def level_path(folder: Path, level: int) -> Path:
    """``LODn.ctx`` in a tree folder, there or not."""
    return folder / f"LOD{level}.ctx"


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
    """What the header says. ``dim`` is 1 for LOD0 (token ids), else the embedding width."""

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
        """The header as 64 bytes."""
        assert len(self.model_fingerprint) == len(self.gist_fingerprint) == 16
        assert self.dim > 0
        assert self.level > 0 or (self.dtype, self.dim) == (RowType.UINT32, 1)
        fields = (MAGIC, FORMAT_VERSION, self.level, BLOCK, int(self.dtype), self.dim, self.count)
        fingerprints = (self.model_fingerprint, self.gist_fingerprint)
        draft = _HEADER.pack(*fields, *fingerprints, 0, 0)
        return _HEADER.pack(*fields, *fingerprints, _constant_checksum(draft), _count_checksum(self.count))

    @staticmethod
    def unpack(data: bytes) -> "Header":
        """Parse 64 bytes.

        Raises CorruptTreeError for a wrong size, magic, version, block size or dtype, TornHeaderError for a checksum.
        """
        if len(data) != HEADER_BYTES:
            raise CorruptTreeError(f"header has {len(data)} bytes instead of {HEADER_BYTES}")
        magic, version, level, block, dtype, dim, count, model, gist, checksum, count_checksum = _HEADER.unpack(data)
        if magic != MAGIC:
            raise CorruptTreeError(f"not a tree file: it starts with {magic!r} instead of {MAGIC!r}")
        if version != FORMAT_VERSION:
            raise CorruptTreeError(
                f"format version {version}; this release reads version {FORMAT_VERSION}. Use the release that wrote "
                "it, or delete the tree: its tokens come again with the next request that sends them"
            )
        if checksum != _constant_checksum(data):
            raise TornHeaderError("header checksum does not match")
        known = block == BLOCK and dtype <= max(RowType) and dim > 0
        if not known or (level == 0 and (dtype, dim) != (RowType.UINT32, 1)):
            raise CorruptTreeError(f"unsupported layout: level {level}, block size {block}, dtype {dtype}, dim {dim}")
        if count_checksum != _count_checksum(count):
            raise TornHeaderError("the checksum of the row count does not match")
        header = Header(level, RowType(dtype), dim, count, model, gist)
        if header.file_bytes(count) >= 1 << 63:
            raise CorruptTreeError(f"{count} rows of {header.row_bytes} bytes are more than a file can hold")
        return header

    def pack_count(self) -> bytes:
        """The last 48 bytes, to be written at ``COUNT_OFFSET``: what a commit writes."""
        return self.pack()[COUNT_OFFSET:]


def unpack_count(data: bytes) -> int | None:
    """Row count out of the last 48 bytes of a header; None if its checksum does not match (torn, or damaged)."""
    if len(data) != _COUNT_PART.size:
        return None
    count, _, _, _, checksum = _COUNT_PART.unpack(data)
    return int(count) if checksum == _count_checksum(count) else None


COUNT_BYTES = _COUNT_PART.size


def _constant_checksum(header: bytes) -> int:
    return zlib.crc32(header[24:56], zlib.crc32(header[:16]))


def _count_checksum(count: int) -> int:
    return zlib.crc32(count.to_bytes(8, "little"))
