"""Gists from the tree's files into their rows on the device, beside the computation where that is possible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

PIECE = 1024
"""Rows that are on their way at a time; as many pinned and staged, twice."""


@dataclass(frozen=True)
class Rows:
    """``gists``: ``[n, d]`` on the host, for the rows ``where`` of the pool: int64 ``[n]``, 32 · page + offset."""

    where: npt.NDArray[np.int64]
    gists: torch.Tensor


class GistFills:
    """Copies gists into ``pages`` ``[P, 32, d]``; one per pool.

    On a GPU they go through pinned memory and a stream of their own, while the step before is still being computed.
    That is safe because the scheduler gives away no row that this step or the one before it shows (``GistRows``): the
    copy has to wait for what ran before that only, and the step for its copy.
    """

    def __init__(self, pages: torch.Tensor) -> None:
        self._rows = pages.view(-1, pages.shape[-1])
        self._beside = _SideStream(self._rows) if pages.is_cuda else None

    def begin_step(self) -> None:
        """Call once a step, before ``copy`` and before anything of the step is queued."""
        if self._beside is not None:
            self._beside.begin_step()

    def copy(self, fills: Sequence[Rows]) -> None:
        if self._beside is not None:
            self._beside.copy(fills)
            return
        for fill in fills:
            self._rows[torch.from_numpy(fill.where)] = fill.gists.to(self._rows)


class _SideStream:
    """Two buffers of a piece each, so that one may be filled while the other is still being read."""

    def __init__(self, rows: torch.Tensor) -> None:
        self._rows = rows
        self._stream = torch.cuda.Stream(rows.device)
        self._buffers = [(_Piece(rows, "cpu"), _Piece(rows, rows.device)) for _ in range(2)]
        self._read: list[Any] = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0
        self._before: Any = torch.cuda.Event()
        self._last: Any = torch.cuda.Event()
        self._last.record()  # the pool itself: no row is filled before it is there

    def begin_step(self) -> None:
        # ``before``: all that was queued before the step that is now under way, whose rows may be given away.
        self._before, self._last = self._last, self._before
        self._last.record()

    def copy(self, fills: Sequence[Rows]) -> None:
        if not fills:
            return
        self._stream.wait_event(self._before)
        for piece in _pieces(fills):
            self._turn ^= 1
            host, staged = self._buffers[self._turn]
            self._read[self._turn].synchronize()  # of two pieces ago: done, unless the host is far ahead
            n = 0
            for part in piece:
                stop = n + len(part.where)
                host.where[n:stop] = torch.from_numpy(part.where)
                host.gists[n:stop] = part.gists
                n = stop
            with torch.cuda.stream(self._stream):
                staged.where[:n].copy_(host.where[:n], non_blocking=True)
                staged.gists[:n].copy_(host.gists[:n], non_blocking=True)
                self._rows.index_copy_(0, staged.where[:n], staged.gists[:n])
                self._read[self._turn].record()
        torch.cuda.current_stream().wait_event(self._read[self._turn])


class _Piece:
    def __init__(self, rows: torch.Tensor, device: torch.device | str) -> None:
        pinned = device == "cpu"
        self.where = torch.empty(PIECE, dtype=torch.int64, device=device, pin_memory=pinned)
        self.gists = torch.empty(PIECE, rows.shape[1], dtype=rows.dtype, device=device, pin_memory=pinned)


def _pieces(fills: Sequence[Rows]) -> Iterator[list[Rows]]:
    """The same rows in the same order, ``PIECE`` of them at a time."""
    piece: list[Rows] = []
    room = PIECE
    for fill in fills:
        start = 0
        while start < len(fill.where):
            part = Rows(fill.where[start : start + room], fill.gists[start : start + room])
            piece.append(part)
            start += len(part.where)
            room -= len(part.where)
            if not room:
                yield piece
                piece, room = [], PIECE
    if piece:
        yield piece
