"""Choose blocks when everything else is hidden: order-preserving retrieval with exact cost of the gap markers.

Used where no trained GistNet exists for the served model (architecture.md, Focus): a wrong gist is noise to a frozen
model, a short marker is not. OP-RAG (Yu et al. 2024, arXiv:2409.01666) shows that chunks in document order read better
than chunks in order of score, so the shown blocks stay where they are.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.best import least_of_best
from megacontext_vllm.tree.nodes import BLOCK


def retrieve(
    utility: npt.NDArray[np.float32], first: int, stop: int, budget: int, gap_cost: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Choose which blocks of ``[first, stop)`` to show; all others of them are hidden, all outside are shown.

    utility   float32 [blocks], whole history. Blocks with utility <= 0 are left to recency.
    budget    entries left for the shown blocks and the markers of ``[first, stop)``; the marker of the one big run
              that exists before anything is chosen is included, so it must be >= gap_cost.
    returns   (shown, recent): bool [blocks]; ``recent`` marks those of ``shown`` that were taken for recency.

    Greedy: utility downwards (ties: lower index), then recency. A block that touches one shown neighbour costs 32, one
    in the middle of a hidden run a marker more, one that fills a hole a marker less.
    """
    shown = np.ones(len(utility), dtype=np.bool_)
    shown[first:stop] = False
    recent = np.zeros(len(utility), dtype=np.bool_)
    if first == stop:
        return shown, recent
    assert budget >= gap_cost, "the caller checks that one marker fits"
    filling = _Filling(first, stop, budget - gap_cost, gap_cost)
    lens = filling.take(_best(utility, first, stop, _at_most(budget, gap_cost, stop - first)))
    lens += filling.fill_up(lambda block: float(utility[block]))
    late = filling.take(range(stop - 1, first - 1, -1))
    late += filling.fill_up(lambda block: 1 + block)
    shown[lens] = shown[late] = recent[late] = True
    return shown, recent


def _at_most(budget: int, gap_cost: int, blocks: int) -> int:
    """How many blocks can be shown one after the other; with markers so long that holes cost next to nothing, all."""
    least = BLOCK - gap_cost
    return min(blocks, budget // least + 1) if least >= BLOCK // 2 else blocks


def _best(utility: npt.NDArray[np.float32], first: int, stop: int, count: int) -> list[int]:
    """The ``count`` blocks of ``[first, stop)`` of most utility, best first, ties: the lower index; none <= 0."""
    middle = utility[first:stop]
    least = least_of_best(middle, count) if count < len(middle) else np.float32(0)
    if least > 0:
        better, equal = np.flatnonzero(middle > least), np.flatnonzero(middle == least)
    else:
        better, equal = np.flatnonzero(middle > 0), np.zeros(0, dtype=np.intp)
    order = np.argsort(-middle[better], kind="stable")
    best: list[int] = (first + np.concatenate([better[order], equal])[:count]).tolist()
    return best


class _Filling:
    """Which blocks of ``[first, stop)`` are shown so far, and what is left for others."""

    def __init__(self, first: int, stop: int, left: int, gap_cost: int) -> None:
        self._first, self._left, self._gap_cost = first, left, gap_cost
        # Plain Python flags, padded by the shown world outside: reading one costs a tenth of an item of a numpy array.
        self._shown = bytearray(stop - first + 2)
        self._shown[0] = self._shown[-1] = 1
        self._beside = {first, stop - 1}
        """Hidden blocks with a shown neighbour."""

    def take(self, candidates: Iterable[int]) -> list[int]:
        """Show them in turn, for as long as any block would fit; returns those that were hidden before."""
        taken = []
        for block in candidates:
            if self._left < BLOCK + self._gap_cost:
                break
            if not self._shown[block - self._first + 1]:
                self._show(block)
                taken.append(block)
        return taken

    def fill_up(self, worth: Callable[[int], float]) -> list[int]:
        """Show what fits where not every block does, the one of most ``worth`` > 0 first: it touches a shown one."""
        taken = []
        while fitting := [block for block in self._beside if self._cost(block) <= self._left and worth(block) > 0]:
            block = max(fitting, key=lambda block: (worth(block), -block))
            self._show(block)
            taken.append(block)
        return taken

    def _cost(self, block: int) -> int:
        at = block - self._first + 1
        return BLOCK + self._gap_cost * (1 - self._shown[at - 1] - self._shown[at + 1])

    def _show(self, block: int) -> None:
        self._left -= self._cost(block)
        at = block - self._first + 1
        self._shown[at] = 1
        self._beside.discard(block)
        self._beside |= {block + step for step in (-1, 1) if not self._shown[at + step]}
