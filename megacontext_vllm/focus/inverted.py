"""Where each number stands in a text: an inverted file (Zobel & Moffat 2006), in 4 bytes a token."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

_PIECE = 1 << 18
"""Numbers that are counted in one call: numpy holds the interpreter's lock meanwhile."""

_PLACES = 1 << 16
_MANY = 64
"""One place in so many: it is quicker to mark and collect them than to sort them."""


class Inverted:
    """Of an array of numbers, the places of each. Immutable, so threads may share it."""

    def __init__(self, numbers: npt.NDArray[Any], size: int, step: int = 1) -> None:
        """numbers: integers [N], each in [-1, size); -1 stands for nothing and is not looked up.

        step  numbers to a place, in which each stands once at most.
        """
        counts = count(numbers, size)
        self._length = -(-len(numbers) // step)
        self.counts = counts[1:]
        """int64 [size]: how often each stands."""
        self._order = (_in_order(numbers, size)[counts[0] :] // step).astype(np.int32)
        self._starts = np.cumsum(self.counts) - self.counts

    def in_pieces(self, wanted: npt.NDArray[Any]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int32]]]:
        """``wanted``, distinct and in [0, size), a part at a time, and the places of each, one number behind the other.

        A part has so few places that what is done with them does not hold the interpreter's lock for long.
        """
        behind = np.cumsum(self.counts[wanted])
        parts = np.flatnonzero(np.diff(behind // _PLACES)) + 1
        for part in np.split(wanted, parts):
            yield part, self._each(part)

    def _each(self, wanted: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        counts = self.counts[wanted]
        behind = np.cumsum(counts)
        if not len(behind) or not behind[-1]:
            return np.zeros(0, dtype=np.int32)
        shift = self._starts[wanted] - (behind - counts)
        found: npt.NDArray[np.int32] = self._order[np.arange(behind[-1]) + np.repeat(shift, counts)]
        return found

    def places(self, wanted: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """The places of all the numbers ``wanted``, ascending."""
        found = self._each(wanted)
        if len(found) * _MANY < self._length:
            return np.sort(found).astype(np.intp)
        stands = np.zeros(self._length, dtype=np.bool_)
        stands[found] = True
        return np.flatnonzero(stands)


def count(numbers: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """int64 [size + 1]: how often each of ``numbers``, integers in [-1, size), stands; -1 first."""
    total = np.zeros(size + 1, dtype=np.int64)
    for start in range(0, len(numbers), _PIECE):
        total += np.bincount(numbers[start : start + _PIECE].astype(np.intp) + 1, minlength=size + 1)
    return total


def _in_order(numbers: npt.NDArray[Any], size: int) -> npt.NDArray[np.intp]:
    """The places of ``numbers`` in ascending order of the numbers, equal ones as they stand."""
    keys = numbers.astype(np.int64) + 1
    # numpy sorts numbers of two bytes in linear time, and no others.
    order: npt.NDArray[np.intp] = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if size + 1 > 1 << 16:
        order = order[np.argsort((keys >> 16)[order].astype(np.uint16), kind="stable")]
    return order
