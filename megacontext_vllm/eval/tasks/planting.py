"""Hide sentences in real text so that everything around them stays whole blocks of that text.

Behind a hidden sentence the filler goes on at a sentence start whose offset in the stream is congruent, modulo 32, to
its place in the history. So each block without a hidden sentence is an aligned block of the stream, and whatever is
made of it (an embedding, a gist) serves all histories. A little filler is left out to get there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.sample import Span
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.tree.nodes import BLOCK

HEAD = 300
"""No evidence stands in this many tokens at the start of a history, ..."""
TAIL = 2600
"""... nor in this many at its end: what shows only the two ends sees nothing of it."""
_NEAR = 128


class NoPlaceError(Exception):
    """No sentence starts where something is to be put: another stretch of the stream may have one."""


class Planting:
    """A history in the making, filled from the left."""

    def __init__(self, filler: Filler, start: int) -> None:
        """``start``: one of ``filler.beginnings``."""
        assert start % BLOCK == 0, start
        self.length = 0
        """Tokens so far. The next filler token begins a sentence."""
        self._filler = filler
        self._start = self._offset = start
        self._parts: list[NDArray[np.uint32]] = []

    def place(self, tokens: NDArray[np.uint32], earliest: int, wish: int, latest: int, near: int = _NEAR) -> Span:
        """Fill up to a sentence start, put ``tokens`` (uint32 ``[n]``) there, and return where they lie.

        They start in ``[earliest, latest]``: up to ``near`` tokens from ``wish`` where the least filler is to be left
        out behind them, or as close to ``wish`` as a sentence starts. Raises NoPlaceError.
        """
        shift = self._offset - self.length
        earliest, latest = max(earliest, self.length), max(latest, self.length - 1)
        starts = self._filler.sentences_between(
            max(earliest, wish - near) + shift, min(latest, wish + near) + shift + 1
        )
        if not len(starts):
            starts = self._filler.sentences_between(earliest + shift, latest + shift + 1)
            if not len(starts):
                raise NoPlaceError
            nearest = int(np.argmin(np.abs(starts - shift - wish)))
            starts = starts[nearest : nearest + 1]
        resumes = [self._filler.next_aligned(at, at - shift + len(tokens)) for at in starts.tolist()]
        best = int(np.argmin(np.array(resumes) - starts))
        self._fill(int(starts[best]) - self._offset)
        span = (self.length, self.length + len(tokens))
        self._parts.append(tokens)
        self.length += len(tokens)
        self._offset = resumes[best]
        return span

    def finish(self, length: int | None = None) -> NDArray[np.uint32]:
        """The history, uint32; filled up to ``length`` tokens if given."""
        self._fill(0 if length is None else length - self.length)
        return np.concatenate(self._parts)

    def _fill(self, count: int) -> None:
        assert count >= 0, "the history is longer than it was to be"
        if self._offset + count > self._start + len(self._filler):
            raise EvaluationError(
                f"the text has {len(self._filler):,} tokens, which is too few for a history of this length "
                f"({self.length + count:,} tokens so far): ask for shorter histories, or give it a longer text"
            )
        self._parts.append(self._filler.read(self._offset, self._offset + count))
        self._offset += count
        self.length += count


@dataclass(frozen=True)
class Wish:
    """What is to be hidden: uint32 ``[n]``, and where: 0 as early, 1 as late as evidence may stand."""

    tokens: NDArray[np.uint32]
    depth: float


def room(length: int, tokens: int) -> int:
    """How far apart the first and the last place for ``tokens`` in a history of ``length`` tokens are; raises
    EvaluationError if they do not fit with text between them."""
    free = length - HEAD - TAIL - tokens
    if free < tokens:
        raise EvaluationError(
            f"{tokens} tokens of facts do not fit a history of {length:,} tokens, whose first {HEAD} and last {TAIL} "
            "stay without: ask for longer histories"
        )
    return free


def plant(filler: Filler, start: int, wishes: Sequence[Wish], length: int) -> tuple[NDArray[np.uint32], list[Span]]:
    """A history of exactly ``length`` tokens (uint32), and where each of ``wishes`` lies in it.

    None lies in the first ``HEAD`` or last ``TAIL`` tokens. Raises NoPlaceError, EvaluationError.
    """
    placed, left = 0, sum(len(wish.tokens) for wish in wishes)
    free = room(length, left)
    near = min(_NEAR, free // (2 * len(wishes)))
    planting = Planting(filler, start)
    spans: list[Span] = [(0, 0)] * len(wishes)
    for i in sorted(range(len(wishes)), key=lambda i: wishes[i].depth):
        # All that is still to come must fit before the tail, even if it has to stand side by side.
        latest = length - TAIL - left
        spans[i] = planting.place(wishes[i].tokens, HEAD, HEAD + placed + round(wishes[i].depth * free), latest, near)
        placed += len(wishes[i].tokens)
        left -= len(wishes[i].tokens)
    return planting.finish(length), spans
