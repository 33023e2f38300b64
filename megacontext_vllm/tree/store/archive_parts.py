"""What goes into an archive of a tree: its files, as of one moment, while others may be writing it."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from megacontext_vllm.tree.files.columns import Column, column_path
from megacontext_vllm.tree.files.header import HEADER_BYTES, MIXED, Header, level_path
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gist_nets import GISTS
from megacontext_vllm.tree.gists import VERSION_COLUMN
from megacontext_vllm.tree.nodes import BLOCK, num_nodes
from megacontext_vllm.tree.sealed import SEALED
from megacontext_vllm.tree.store.manifest import column_bytes
from megacontext_vllm.tree.tree import MegaContextTree

CHUNK_BYTES = 1 << 22


@dataclass
class Part:
    """One file to come: its size is fixed, its bytes come when asked for."""

    name: str
    size: int
    chunks: Callable[[], Iterator[bytes]]


def parts_of(tree: MegaContextTree, length: int, opened: ExitStack) -> list[Part]:
    """Everything of ``tree`` at ``length`` tokens. The files stay open until ``opened`` is closed."""
    parts: list[Part | None] = [_whole(tree.path / name) for name in ("meta.json", SEALED, GISTS)]
    for level in [0, *tree.gist_levels()]:
        try:
            reader = opened.enter_context(closing(LevelReader(level_path(tree.path, level))))
        except FileNotFoundError:  # gists that were dropped just now
            continue
        header = replace(reader.header, count=min(reader.count, num_nodes(length, level)))
        if level and not header.count:
            continue
        versions = _versions(tree, header, opened) if header.gist_fingerprint == MIXED and level else None
        parts.append(_level(reader, header, tree, versions))
        if versions is not None:
            parts.append(versions.part)
    for path in sorted(tree.path.glob("LOD*.col")):
        number, _, name = path.stem[3:].partition(".")
        nodes = num_nodes(length, int(number)) if number.isdecimal() else 0
        if nodes and name != VERSION_COLUMN:
            parts.append(_column(path, nodes, opened))
    return [part for part in parts if part is not None]


def _whole(path: Path) -> Part | None:
    """A small file, read at once."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return Part(path.name, len(data), lambda: iter((data,)))


def _level(reader: LevelReader, header: Header, tree: MegaContextTree, versions: "_Versions | None") -> Part:
    """The committed rows; ``versions`` notes which net made each of those that were read."""

    def chunks() -> Iterator[bytes]:
        yield header.pack()
        width = BLOCK**header.level
        at_once = max(CHUNK_BYTES // header.row_bytes // BLOCK * BLOCK, BLOCK)
        at = 0
        while at < header.count:
            near = tree.sealed.overlapping(at * width, (at + at_once) * width)
            gone = [span for span in near if span.level > header.level]
            start = min(gone[0].start // width, header.count) if gone else header.count
            if start <= at:
                stop = min(gone[0].stop // width, at + at_once, header.count)
                yield bytes((stop - at) * header.row_bytes)
                if versions is not None:
                    versions.skip(at, stop)
            else:
                stop = min(start, at + at_once)
                if versions is None:
                    yield reader.read(at, stop).tobytes()
                else:
                    with versions.around(at, stop):
                        rows = reader.read(at, stop)
                    yield rows.tobytes()
            at = stop

    return Part(reader.path.name, header.file_bytes(header.count), chunks)


class _Versions:
    """The version column of a level that has gists of several nets, noted while its rows are read.

    A gist that is made anew at that moment may be read as it was or as it is; it gets version 0: to be made again.
    """

    def __init__(self, column: Column, head: bytes, count: int, opened: ExitStack) -> None:
        self._column = column
        self._noted = opened.enter_context(tempfile.SpooledTemporaryFile(CHUNK_BYTES))  # noqa: SIM115
        self._noted.write(head)
        self.part = Part(column.path.name, len(head) + count * column.dtype.itemsize, self._chunks)

    @contextmanager
    def around(self, start: int, stop: int) -> Iterator[None]:
        before = self._column.read(start, stop)
        yield
        same = self._column.read(start, stop) == before
        self._noted.write(np.where(same, before, 0).astype(self._column.dtype).tobytes())

    def skip(self, start: int, stop: int) -> None:
        self._noted.write(self._column.read(start, stop).tobytes())

    def _chunks(self) -> Iterator[bytes]:
        self._noted.seek(0)
        while chunk := self._noted.read(CHUNK_BYTES):
            yield chunk


def _versions(tree: MegaContextTree, header: Header, opened: ExitStack) -> _Versions | None:
    """None where there is no column: then all gists of the level are to be made again, here and there."""
    try:
        with open(column_path(tree.path, header.level, VERSION_COLUMN), "rb") as file:
            head = file.read(HEADER_BYTES)
    except FileNotFoundError:
        return None
    column = opened.enter_context(Column(tree.path, header.level, VERSION_COLUMN, np.uint16))
    return _Versions(column, head, header.count, opened)


def _column(path: Path, nodes: int, opened: ExitStack) -> Part | None:
    """What is noted about the first ``nodes`` nodes, at the most."""
    try:
        file = opened.enter_context(open(path, "rb"))  # noqa: SIM115
    except FileNotFoundError:  # dropped just now
        return None
    size = min(os.fstat(file.fileno()).st_size, column_bytes(nodes))

    def chunks() -> Iterator[bytes]:
        left = size
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            left -= len(chunk)
            yield chunk

    return Part(path.name, size, chunks)
