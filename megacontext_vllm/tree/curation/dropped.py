"""The archive of one compaction: every row below one node, so that it can be put back exactly as it was.

``MCTXDROP`` | bytes of the description u32 | description, JSON | for each level from 0 up: rows, then the crc32c of
each of their pages u32 | blake2b of all before, 16 bytes. Little-endian. The description names tree and node, and says
for each level what its rows are and which GistNets made them.
"""

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError
from megacontext_vllm.tree.curation.places import DRAFT_SUFFIX
from megacontext_vllm.tree.curation.policy import MAX_LEVEL
from megacontext_vllm.tree.files.checksums import page_checksums, page_rows
from megacontext_vllm.tree.files.header import RowType
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.nodes import BLOCK, span

_MAGIC = b"MCTXDROP"
_LENGTH = struct.Struct("<I")
_DIGEST_BYTES = 16
_MAX_DESCRIPTION = 1 << 24
_MAX_RUNS = 4096
_CHUNK_BYTES = 1 << 23
_FORMAT_VERSION = 1

Nets = tuple[tuple[int, bytes | None], ...]
"""Runs of gists by the net that made them, as ``(gists, fingerprint)``; None: to be made again."""


@dataclass(frozen=True)
class DroppedLevel:
    """Rows ``[first, first + count)`` of a level file."""

    level: int
    dtype: RowType
    dim: int
    first: int
    count: int
    nets: Nets = ()

    @property
    def row_bytes(self) -> int:
        return self.dim * self.dtype.numpy.itemsize

    @property
    def pages(self) -> int:
        return self.count // page_rows(self.level)


@dataclass(frozen=True)
class Dropped:
    """What an archive holds: all rows below node ``(level, index)`` of a tree."""

    action_id: str
    namespace: str
    tree_id: str
    model_fingerprint: bytes
    level: int
    index: int
    levels: tuple[DroppedLevel, ...]


def runs_of(nets: list[bytes | None]) -> Nets:
    """One net per gist, as runs; where there are very many, all gists count as to be made again."""
    runs = tuple((len(list(same)), net) for net, same in groupby(nets))
    return runs if len(runs) <= _MAX_RUNS else ((len(nets), None),)


def write_dropped(path: Path, what: Dropped, readers: Callable[[int], LevelReader]) -> None:
    """Copy the rows out of the tree, each compared with its checksum; on the disk when this returns, but for its name.

    Raises CorruptTreeError (damaged rows are not archived), OSError. Nothing is left behind then.
    """
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    try:
        with open(draft, "wb") as file:
            digest = blake2b(digest_size=_DIGEST_BYTES)
            for part in _parts(what, readers):
                file.write(part)
                digest.update(part)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def _parts(what: Dropped, readers: Callable[[int], LevelReader]) -> Iterator[bytes]:
    text = json.dumps(_to_json(what)).encode()
    yield _MAGIC + _LENGTH.pack(len(text)) + text
    for item in what.levels:
        sums = []
        for start, stop in _chunks(item):
            rows = readers(item.level).read(item.first + start, item.first + stop)
            sums.append(page_checksums(rows, item.level, item.row_bytes)[0])
            yield rows.tobytes()
        yield np.concatenate(sums).astype("<u4").tobytes()


def _chunks(item: DroppedLevel) -> Iterator[tuple[int, int]]:
    """Whole pages, some megabytes at once."""
    rows = page_rows(item.level)
    step = max(_CHUNK_BYTES // (rows * item.row_bytes), 1) * rows
    for start in range(0, item.count, step):
        yield start, min(start + step, item.count)


class DroppedFile:
    """An open archive, compared with its digest. A context manager; raises CorruptTreeError, OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115
        try:
            self.what = self._check()
        except BaseException:
            self._file.close()
            raise

    def _check(self) -> Dropped:
        size = os.fstat(self._file.fileno()).st_size
        start = self._file.read(len(_MAGIC) + _LENGTH.size)
        if len(start) < len(_MAGIC) + _LENGTH.size or not start.startswith(_MAGIC):
            raise CorruptTreeError(f"{self.path} is not an archive of a compaction")
        (length,) = _LENGTH.unpack(start[len(_MAGIC) :])
        if length > _MAX_DESCRIPTION:
            raise CorruptTreeError(f"{self.path} is damaged: a description of {length} bytes")
        text = self._file.read(length)
        try:
            what = _from_json(json.loads(text))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptTreeError(f"{self.path} is damaged: {error}") from None
        self._rows_at = len(start) + length
        body = sum(item.count * item.row_bytes + 4 * item.pages for item in what.levels)
        if size != self._rows_at + body + _DIGEST_BYTES:
            raise CorruptTreeError(f"{self.path} is damaged: it has {size} bytes, not what it describes")
        digest, left = blake2b(start + text, digest_size=_DIGEST_BYTES), body
        while left and (part := self._file.read(min(left, _CHUNK_BYTES))):
            digest.update(part)
            left -= len(part)
        if left or self._file.read(_DIGEST_BYTES) != digest.digest():
            raise CorruptTreeError(f"{self.path} is damaged: it differs from its checksum")
        return what

    def rows(self, level: int) -> Iterator[tuple[int, NDArray[Any], NDArray[np.uint32]]]:
        """Of a level: row of the level file, rows ``[n, dim]`` (LOD0 ``[n]``), checksums of their pages; in pieces.

        Raises CorruptTreeError where rows and checksums do not agree.
        """
        at = self._rows_at
        for item in self.what.levels[:level]:
            at += item.count * item.row_bytes + 4 * item.pages
        item = self.what.levels[level]
        sums = np.frombuffer(self._read(at + item.count * item.row_bytes, 4 * item.pages), "<u4")
        for start, stop in _chunks(item):
            data = self._read(at + start * item.row_bytes, (stop - start) * item.row_bytes)
            rows = np.frombuffer(data, item.dtype.numpy)
            expected = sums[start // page_rows(level) : stop // page_rows(level)]
            if not np.array_equal(page_checksums(rows, level, item.row_bytes)[0], expected):
                raise CorruptTreeError(f"{self.path} is damaged: its rows differ from their checksums")
            yield item.first + start, rows if level == 0 else rows.reshape(-1, item.dim), expected

    def _read(self, at: int, size: int) -> bytes:
        self._file.seek(at)
        return self._file.read(size)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "DroppedFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _to_json(what: Dropped) -> dict[str, Any]:
    return {
        "format_version": _FORMAT_VERSION,
        "action_id": what.action_id,
        "namespace": what.namespace,
        "tree_id": what.tree_id,
        "model_fingerprint": what.model_fingerprint.hex(),
        "node": [what.level, what.index],
        "levels": [
            [int(item.dtype), item.dim, [[count, net and net.hex()] for count, net in item.nets]]
            for item in what.levels
        ],
    }


def _from_json(data: Any) -> Dropped:
    """Raises ValueError, TypeError or KeyError for anything else."""
    if data["format_version"] != _FORMAT_VERSION:
        raise ValueError(f"format version {str(data['format_version'])[:80]}, known is {_FORMAT_VERSION}")
    texts = [data[key] for key in ("action_id", "namespace", "tree_id", "model_fingerprint")]
    if not all(isinstance(item, str) for item in texts):
        raise ValueError("names are text")
    (level, index), levels = data["node"], data["levels"]
    if not _is_count(level) or not _is_count(index) or not 2 <= level <= MAX_LEVEL or len(levels) != level:
        raise ValueError("there is no such node")
    start, stop = span(level, index)
    parsed = []
    for below, (dtype, dim, nets) in enumerate(levels):
        if not _is_count(dtype) or dtype > max(RowType) or not _is_count(dim) or not 1 <= dim <= 1 << 24:
            raise ValueError("rows of no known type")
        if below == 0 and (dtype, dim) != (RowType.UINT32, 1):
            raise ValueError("tokens of no known type")
        first, count = start // BLOCK**below, (stop - start) // BLOCK**below
        runs = tuple((run, None if net is None else bytes.fromhex(net)) for run, net in nets)
        if not all(_is_count(run) for run, _ in runs) or sum(run for run, _ in runs) != (count if below else 0):
            raise ValueError("the nets do not cover the gists")
        if not all(net is None or len(net) == 16 for _, net in runs):
            raise ValueError("a net has a fingerprint of 16 bytes")
        parsed.append(DroppedLevel(below, RowType(dtype), dim, first, count, runs))
    action_id, namespace, tree_id, model = texts
    return Dropped(action_id, namespace, tree_id, bytes.fromhex(model), level, index, tuple(parsed))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48
