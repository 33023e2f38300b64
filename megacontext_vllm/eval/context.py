"""What a method shows of a history: pieces in order, and what they cost."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.sample import Span


@dataclass(frozen=True)
class Raw:
    """The tokens ``[start, stop)`` of the history as they are."""

    start: int
    stop: int


@dataclass(frozen=True)
class Gap:
    """A marker in place of tokens ``[start, stop)``."""

    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Gist:
    """One embedding, float32 ``[d]``, in place of tokens ``[start, stop)``."""

    start: int
    stop: int
    vector: NDArray[np.float32]


Piece = Raw | Gap | Gist


@dataclass(frozen=True, eq=False)
class Context:
    """Pieces in the order of the history, none overlapping; what they leave out is not shown at all.

    ``gap``: token ids of the marker that a Gap is shown as.
    """

    pieces: tuple[Piece, ...]
    gap: tuple[int, ...]

    def __post_init__(self) -> None:
        at = 0
        for piece in self.pieces:
            assert at <= piece.start < piece.stop, f"out of order: {piece} after {at}"
            at = piece.stop

    @property
    def cost(self) -> int:
        """Entries that the reader prefills for the history."""
        return sum(self._cost(piece) for piece in self.pieces)

    def _cost(self, piece: Piece) -> int:
        if isinstance(piece, Raw):
            return piece.stop - piece.start
        return len(self.gap) if isinstance(piece, Gap) else 1

    @property
    def raw(self) -> list[Span]:
        """What is shown raw."""
        return [(piece.start, piece.stop) for piece in self.pieces if isinstance(piece, Raw)]

    def recall(self, evidence: Sequence[Span]) -> float:
        """Share of the evidence's tokens that are shown raw (``quality.md``); spans of evidence do not overlap."""
        shown = sum(max(0, min(stop, b) - max(start, a)) for start, stop in evidence for a, b in self.raw)
        return shown / sum(stop - start for start, stop in evidence)


def show_spans(spans: Iterable[Span], length: int, gap: Sequence[int]) -> Context:
    """The context that shows ``spans`` (any order, may touch or overlap) and a gap wherever something is left out.

    ``length``: tokens of the history. With an empty ``gap`` nothing marks what is left out.
    """
    merged: list[list[int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        elif start < stop:
            merged.append([start, stop])
    pieces: list[Piece] = []
    at = 0
    for start, stop in merged:
        if at < start and gap:
            pieces.append(Gap(at, start))
        pieces.append(Raw(start, stop))
        at = stop
    if at < length and gap:
        pieces.append(Gap(at, length))
    return Context(tuple(pieces), tuple(gap))


def show_best(ranked: Iterable[Span], length: int, budget: int, gap: Sequence[int]) -> Context:
    """The best of ``ranked`` spans (best first, none overlapping) that fit the budget, gaps included, in their place.

    Of the first span that does not fit any more its beginning is shown, so that the budget is spent: else two chunks of
    256 would not fit 512. ``budget``: entries, at least one gap. A history that fits is shown whole.
    """
    if length <= budget:
        return show_spans([(0, length)], length, gap)
    chosen: list[Span] = []
    starts: set[int] = set()
    stops: set[int] = set()
    cost = len(gap)  # of one big gap
    for start, stop in ranked:
        # A gap is split, moved or filled, depending on what is shown on either side.
        before, after = start == 0 or start in stops, stop == length or stop in starts
        added = stop - start + len(gap) * (1 - before - after)
        if cost + added > budget:
            room = budget - cost - len(gap) * (1 - before)  # what is cut off stays hidden, so there is a gap behind
            if room <= 0:
                continue
            chosen.append((start, start + room))
            break
        chosen.append((start, stop))
        starts.add(start)
        stops.add(stop)
        cost += added
    context = show_spans(chosen, length, gap)
    assert context.cost <= budget, (context.cost, budget)
    return context
