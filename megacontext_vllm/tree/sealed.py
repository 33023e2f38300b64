"""Sealed spans: nodes of which only the gist is left, because what was below was compacted away, or lost to a disk.

Their LOD0 rows and the gists of lower levels are holes in the files, zeros that mean nothing; ``sealed.json`` says
where. It changes only while nobody has the tree open (``files/locks.py: claim``). A span keeps the chained prefix
hashes at the end of each of its runs of 1,024 tokens, so that a history that is sent again can still be matched across
it.
"""

import bisect
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.nodes import BLOCK, span

SEALED = "sealed.json"
_VERSION = 1
_MAX_LEVEL = 12
HASH_BYTES = 16
_RUN = BLOCK * BLOCK


@dataclass(frozen=True)
class SealedSpan:
    """Node ``(level, index)``, level 2 or more. ``action``: the logged action that compacted it, None if it was lost.

    ``hashes``: one of 16 bytes per 1,024 tokens, or none where they are not known.
    """

    level: int
    index: int
    kind: Literal["compacted", "lost"]
    hashes: tuple[bytes, ...] = ()
    action: str | None = None

    @property
    def start(self) -> int:
        """First token."""
        return span(self.level, self.index)[0]

    @property
    def stop(self) -> int:
        """The token behind the last."""
        return span(self.level, self.index)[1]


class SealedSpans:
    """All sealed spans of a tree, in order; immutable. Raises ValueError for spans that overlap."""

    def __init__(self, spans: Iterable[SealedSpan] = ()) -> None:
        self._spans = tuple(sorted(spans, key=lambda item: item.start))
        self._starts = [item.start for item in self._spans]
        for before, after in zip(self._spans, self._spans[1:]):
            if before.stop > after.start:
                raise ValueError(f"sealed spans overlap: {before} and {after}")

    def __bool__(self) -> bool:
        return bool(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __iter__(self) -> Iterator[SealedSpan]:
        return iter(self._spans)

    def overlapping(self, start: int, stop: int) -> list[SealedSpan]:
        """Spans that have a token of ``[start, stop)``."""
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        return [item for item in self._spans[first : bisect.bisect_left(self._starts, stop)] if item.stop > start]

    def runs(self, start: int, stop: int) -> list[tuple[int, int]]:
        """What of ``[start, stop)`` has its raw tokens, as ``(start, stop)`` in order."""
        found, at = [], start
        for item in self.overlapping(start, stop):
            if at < item.start:
                found.append((at, item.start))
            at = item.stop
        if at < stop:
            found.append((at, stop))
        return found

    def hides(self, level: int, index: int) -> bool:
        """Whether the gist of node ``(level, index)`` is gone with the span above it."""
        return any(item.level > level for item in self.overlapping(*span(level, index)))

    @classmethod
    def of(cls, folder: Path) -> "SealedSpans":
        """The sealed spans of the tree in ``folder``; none without the file. Raises CorruptTreeError, StoreError."""
        try:
            text = (folder / SEALED).read_bytes()
        except FileNotFoundError:
            return NOTHING
        except OSError as error:
            raise StoreError(f"cannot read {folder / SEALED}: {error.strerror}") from error
        return cls.parse(text, str(folder / SEALED))

    @classmethod
    def parse(cls, text: bytes, where: str) -> "SealedSpans":
        """Check the bytes of a ``sealed.json``. Raises CorruptTreeError, which names ``where``."""
        try:
            data = json.loads(text)
            if data["format_version"] != _VERSION:
                raise CorruptTreeError(f"{where}: format version {data['format_version']}, known is {_VERSION}")
            return cls(_span(item) for item in data["spans"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptTreeError(f"{where} is damaged: {error}") from None

    def save(self, folder: Path) -> None:
        """Replace ``sealed.json`` in one step, on the disk when this returns. Raises OSError."""
        spans = [
            {
                "level": item.level,
                "index": item.index,
                "kind": item.kind,
                "hashes": "".join(value.hex() for value in item.hashes),
                "action": item.action,
            }
            for item in self._spans
        ]
        draft = folder / f"{SEALED}.tmp"
        with open(draft, "w", encoding="utf-8") as file:
            file.write(json.dumps({"format_version": _VERSION, "spans": spans}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(folder / SEALED)
        sync_path(folder)


def _span(item: dict[str, object]) -> SealedSpan:
    level, index, kind, joined, action = (item[key] for key in ("level", "index", "kind", "hashes", "action"))
    if not isinstance(level, int) or not isinstance(index, int) or not 2 <= level <= _MAX_LEVEL or index < 0:
        raise ValueError(f"no such node: {level}, {index}")
    if kind != "compacted" and kind != "lost":
        raise ValueError(f"unknown kind {kind!r}")
    if not isinstance(joined, str) or not (action is None or isinstance(action, str)):
        raise ValueError("hashes and action are text")
    data = bytes.fromhex(joined)
    if len(data) not in (0, HASH_BYTES * BLOCK**level // _RUN):
        raise ValueError(f"{len(data)} bytes of hashes for a node of level {level}")
    hashes = tuple(data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES))
    return SealedSpan(level, index, kind, hashes, action)


NOTHING = SealedSpans()
