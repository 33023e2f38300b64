"""Rows of gists from the tree's files onto their pages on the device, beside the computation where that is possible."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from megacontext_vllm.kernels.gist_reduce import BLOCK


@dataclass(frozen=True)
class Rows:
    """``rows``: ``[n, d]`` on the host, for the rows of the pool from ``first`` on (row ``32 · page + offset``)."""

    first: int
    rows: torch.Tensor


class PageFills:
    """Copies rows into ``pages`` ``[P, 32, d]``; one per pool.

    On a GPU they go through pinned memory and a stream of their own, while the step before is still being computed.
    That is safe because the scheduler gives away no page that this step or the one before it shows (``GistPages``): the
    copy has to wait for what ran before that only, and the step for its copy.
    """

    def __init__(self, pages: torch.Tensor) -> None:
        self._rows = pages.view(-1, pages.shape[-1])
        self._beside = _SideStream(pages) if pages.is_cuda else None

    def begin_step(self) -> None:
        """Call once a step, before ``copy`` and before anything of the step is queued."""
        if self._beside is not None:
            self._beside.begin_step()

    def copy(self, fills: Sequence[Rows]) -> None:
        if self._beside is not None and fills:
            self._beside.copy(self._rows, fills)
            return
        for fill in fills:
            self._rows[fill.first : fill.first + len(fill.rows)] = fill.rows.to(self._rows)


class _SideStream:
    """Two pinned buffers, so that one may be filled while the other is still being read."""

    def __init__(self, pages: torch.Tensor) -> None:
        self._stream = torch.cuda.Stream(pages.device)
        self._like = pages
        self._buffers: list[torch.Tensor] = [self._pinned(4 * BLOCK) for _ in range(2)]
        self._read: list[Any] = [torch.cuda.Event() for _ in range(2)]
        self._turn = 0
        self._before: Any = torch.cuda.Event()
        self._last: Any = torch.cuda.Event()

    def begin_step(self) -> None:
        # ``before``: all that was queued before the step that is now under way, whose pages may be given away.
        self._before, self._last = self._last, self._before
        self._last.record()

    def copy(self, pool: torch.Tensor, fills: Sequence[Rows]) -> None:
        count = sum(len(fill.rows) for fill in fills)
        self._turn ^= 1
        self._read[self._turn].synchronize()  # of two steps ago: done, unless the host is far ahead
        if len(self._buffers[self._turn]) < count:
            self._buffers[self._turn] = self._pinned(2 * count)
        buffer, start = self._buffers[self._turn], 0
        self._stream.wait_event(self._before)
        with torch.cuda.stream(self._stream):
            for fill in fills:
                stop = start + len(fill.rows)
                buffer[start:stop] = fill.rows
                pool[fill.first : fill.first + len(fill.rows)].copy_(buffer[start:stop], non_blocking=True)
                start = stop
            self._read[self._turn].record()
        torch.cuda.current_stream().wait_event(self._read[self._turn])

    def _pinned(self, rows: int) -> torch.Tensor:
        return torch.empty(rows, self._like.shape[-1], dtype=self._like.dtype, pin_memory=True)
