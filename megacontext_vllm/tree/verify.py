"""Compare every committed row of a tree with its checksum, and say exactly what is damaged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files.header import level_path
from megacontext_vllm.tree.files.level_reader import LevelReader, has_checksums
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.nodes import BLOCK, num_nodes
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.tree import gist_levels

_PAGES_AT_ONCE = 1024
NO_CHECKSUM = "has no checksum"
"""Reason of a damage."""

Progress = Callable[[int, int], None]
"""Called with (pages done, pages in all)."""


@dataclass(frozen=True)
class Damage:
    """Rows ``[start, stop)`` of ``level`` that cannot be trusted; ``stop`` None: all of the file.

    ``tokens``: the span of the history that they stand for, ``[start, stop)``; None where that is not known.
    """

    level: int
    start: int
    stop: int | None
    tokens: tuple[int, int] | None
    reason: str

    def __str__(self) -> str:
        where = f"tokens {self.tokens[0]:,} to {self.tokens[1]:,}" if self.tokens else "all of it"
        return f"LOD{self.level}: {where}: {self.reason}"


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what was found. ``length``: tokens that are there, damaged ones included."""

    path: Path
    length: int
    pages: int
    damage: tuple[Damage, ...]

    @property
    def tokens_damaged(self) -> list[tuple[int, int]]:
        """Spans of the history whose tokens are damaged; everything else can be read."""
        return [item.tokens for item in self.damage if item.level == 0 and item.tokens is not None]


def verify_tree(path: Path, progress: Progress | None = None) -> Verified:
    """Read all of the tree in folder ``path`` and compare it with its checksums; changes nothing.

    Works beside a running writer. Raises UnknownTreeError, CorruptTreeError where ``meta.json`` or ``sealed.json`` is
    damaged, StoreError.
    """
    meta = read_meta(path)
    sealed = SealedSpans.of(path)
    readers: list[LevelReader] = []
    damage: list[Damage] = []
    try:
        length = 0
        for level in [0, *gist_levels(path)]:
            file = level_path(path, level)
            try:
                reader = LevelReader.salvage(file)
            except FileNotFoundError:
                if level == 0:
                    damage.append(Damage(0, 0, None, None, "the file is missing"))
                continue
            except CorruptTreeError as error:
                damage.append(Damage(level, 0, None, None, str(error)))
                continue
            except OSError as error:
                raise StoreError(f"cannot read {file}: {error.strerror}") from error
            readers.append(reader)
            if level == 0:
                length = reader.count
            damage += _header_damage(reader, level, meta["model_fingerprint"], length)
        total = sum(reader.page_count for reader in readers)
        done = 0
        for reader in readers:
            for first in range(0, reader.page_count, _PAGES_AT_ONCE):
                stop = min(first + _PAGES_AT_ONCE, reader.page_count)
                bad = [page for page in reader.bad_pages(first, stop) if not _is_sealed(sealed, reader, page)]
                damage += [_rows(reader, page) for page in bad]
                done += stop - first
                if progress is not None:
                    progress(done, total)
        return Verified(path, length, total, tuple(_joined(damage)))
    finally:
        for reader in readers:
            reader.close()


def _header_damage(reader: LevelReader, level: int, fingerprint: str, length: int) -> list[Damage]:
    found = []
    header = reader.header
    if header.level != level:
        found.append(Damage(level, 0, None, None, f"the file is of level {header.level}"))
    if header.model_fingerprint.hex() != fingerprint:
        found.append(Damage(level, 0, None, None, "the file was written for another model"))
    if not has_checksums(reader.path, header) and reader.has_sums:
        found.append(Damage(level, 0, 0, None, "the header of its checksums is damaged"))  # repair writes it anew
    width = BLOCK**level
    if header.count > reader.count:
        lost = (reader.count * width, header.count * width)
        found.append(Damage(level, reader.count, header.count, lost, "rows are missing: the file is too short"))
    if level and reader.count > num_nodes(length, level):
        first = num_nodes(length, level)
        found.append(Damage(level, first, reader.count, None, "gists of tokens that are not there"))
    return found


def _is_sealed(sealed: SealedSpans, reader: LevelReader, page: int) -> bool:
    level, start = reader.header.level, page * reader.page_rows
    return bool(sealed) and any(
        item.level > level and item.start <= start * BLOCK**level for item in sealed.overlapping(*_span(reader, page))
    )


def _span(reader: LevelReader, page: int) -> tuple[int, int]:
    width = BLOCK**reader.header.level
    stop = min((page + 1) * reader.page_rows, reader.count)
    return page * reader.page_rows * width, stop * width


def _rows(reader: LevelReader, page: int) -> Damage:
    start, stop = page * reader.page_rows, min((page + 1) * reader.page_rows, reader.count)
    try:
        reader.read(start, stop)
        reason = "differed from the checksum, and not any more"
    except StoreError as error:
        reason = "cannot be read" if "cannot read" in str(error) else "differs from its checksum"
        if "has no checksums" in str(error):
            reason = NO_CHECKSUM
    return Damage(reader.header.level, start, stop, _span(reader, page), reason)


def _joined(damage: list[Damage]) -> list[Damage]:
    """Neighbouring pages with the same damage as one."""
    joined: list[Damage] = []
    for item in sorted(damage, key=lambda d: (d.level, d.start, d.stop or 0)):
        last = joined[-1] if joined else None
        key = (item.level, item.start, item.reason)
        if last and last.tokens and item.tokens and (last.level, last.stop, last.reason) == key:
            joined[-1] = Damage(last.level, last.start, item.stop, (last.tokens[0], item.tokens[1]), last.reason)
        else:
            joined.append(item)
    return joined
