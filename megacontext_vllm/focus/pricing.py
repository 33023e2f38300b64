"""Which nodes are worth expanding at a price per expansion, and the price at which they just fit.

Lagrangian relaxation: at a price the best set is found in one pass upwards, value = max(0, sum of the children's values
- price), and the price is bisected. A set found this way is optimal for its own size (Everett 1963).

What keeps it fast over millions of blocks: a higher price chooses a part of what a lower one does, rounding included,
and so does looking at fewer blocks. So where a few blocks are too much already, the others need no look; a node whose
blocks would not pay if all were its best one needs none; and what a price that is too low leaves out is left out for
good.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.best import least_of_best
from megacontext_vllm.focus.forest import Forest, Indices

Mask = npt.NDArray[np.bool_]
Utilities = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

# Halvings of the price: utilities are float32, more steps than its mantissa has bits change nothing.
_STEPS = 30
_ENOUGH = 64
"""So many blocks for every expansion mostly hold all that are worth their price, and save looking at the others."""
_FEW = 32**3
"""Blocks that show whether a price is far too low."""
_SLACK = 1e-9  # relative: far more than sums of a few dozen numbers lose by rounding


@dataclass(frozen=True)
class Chosen:
    """A set of expansions.

    blocks  intp [·], ascending: the expanded blocks; each is worth more than ``price`` for itself.
    above   bool [nodes inside] for each level from 2 upwards: the expanded nodes.
    count   of all of them.
    """

    blocks: Indices
    above: list[Mask]
    price: float
    count: int

    def nodes(self, forest: Forest) -> list[set[int]]:
        """The same per level."""
        if not self.count:
            return forest.nothing()
        above = [
            set((np.flatnonzero(mask) + inside.start).tolist())
            for mask, inside in zip(self.above, forest.inside[1:], strict=True)
        ]
        return [set(self.blocks.tolist()), *above]


def best_fitting(forest: Forest, utility: Utilities, best: list[Utilities], steps: int) -> tuple[Chosen, Chosen | None]:
    """The largest set of at most ``steps`` >= 1 expansions that one price chooses, and the next larger one.

    utility  float32 [blocks]; what is <= 0 is never chosen.
    best     float32 [nodes inside] for each level from 2 upwards: the utility of the best block of each node.
    returns  no larger set if the first one has all that is worth anything.
    """
    choice = _Choice(forest, utility, best)
    start, stop = forest.inside[0].start, forest.inside[0].stop
    most = _ENOUGH * steps
    low, high = 0.0, max(float(utility[start:stop].max(initial=0)), 0.0)
    if stop - start >= most and len(utility) > most:
        low = max(float(least_of_best(utility[start:stop], most)), 0.0)
    fits, wanted = None, choice.at(low)
    if wanted.count <= steps:
        if not low:
            return wanted, None
        # At no price, all of those many blocks are chosen: more than fits.
        fits, larger, low, high = wanted, None, 0.0, low
    else:
        larger = choice.keep(wanted)
    for _ in range(_STEPS):
        price = (low + high) / 2
        if choice.surely_exceeds(price, steps):
            larger, low = None, price
        elif (chosen := choice.at(price)).count > steps:
            larger, low = choice.keep(chosen), price
        else:
            fits, high = chosen, price
    return fits or choice.at(np.inf), larger or choice.at(low)


class _Choice:
    """Sets by their price, and which blocks are to be looked at for them."""

    def __init__(self, forest: Forest, utility: Utilities, best: list[Utilities]) -> None:
        self._forest, self._utility, self._best = forest, utility, best
        self._least = np.inf
        """The lowest price that the blocks to be looked at are enough for."""
        self._set(np.zeros(0, dtype=np.intp), np.zeros(0))

    def surely_exceeds(self, price: float, steps: int) -> bool:
        """Whether a look at a few blocks shows that more than ``steps`` expansions are chosen; only where it pays."""
        inside = self._forest.inside[0]
        if price >= self._least or len(inside) <= _FEW:
            return False
        blocks = self._above(price, inside[:_FEW])
        few = _Choice(self._forest, self._utility, self._best)
        few._set(blocks, self._utility[blocks].astype(np.float64))
        few._least = price
        return few.at(price).count > steps

    def at(self, price: float) -> Chosen:
        """The best set if each expansion costs ``price``."""
        if price < self._least:
            self._look(price)
        gain = np.maximum(self._value - price, 0)
        taken = gain > 0
        above: list[Mask] = []
        if len(self._forest.inside) > 1:
            children = np.bincount(self._parents, gain[self._below], len(self._forest.inside[1]))
            above = _worth_it(self._forest, children.astype(np.float64, copy=False), price)
            taken[self._below] &= above[0][self._parents]
        blocks = self._blocks[taken]
        return Chosen(blocks, above, price, len(blocks) + sum(int(np.count_nonzero(mask)) for mask in above))

    def keep(self, chosen: Chosen) -> Chosen:
        """Look at nothing else any more: all prices to come are higher. -> the same."""
        # Copying what is left takes as long as a look at it.
        if 4 * len(chosen.blocks) < 3 * len(self._blocks):
            self._set(chosen.blocks, self._utility[chosen.blocks].astype(np.float64))
        return chosen

    def _look(self, price: float) -> None:
        """Find what may be chosen at this price or a higher one."""
        forest, inside = self._forest, self._forest.inside[0]
        blocks = None
        if len(forest.inside) > 1 and price:
            less = price * (1 - _SLACK)
            most = forest.branching * np.maximum(self._best[0].astype(np.float64) - less, 0)
            hopeful = _worth_it(forest, most, less)[0]
            if 2 * np.count_nonzero(hopeful) < len(hopeful):
                blocks = self._above_below(price, np.flatnonzero(hopeful))
        if blocks is None:
            blocks = self._above(price, inside)
        self._set(blocks, self._utility[blocks].astype(np.float64))
        self._least = price

    def _above(self, price: float, among: range) -> Indices:
        """The blocks of ``among`` of a utility above ``price``."""
        blocks: Indices = np.flatnonzero(self._utility[among.start : among.stop] > rounded_down(price))
        blocks += among.start
        return blocks

    def _above_below(self, price: float, parents: Indices) -> Indices:
        """The same of those without a parent inside, and of the children of ``parents``, counted from the first one."""
        inside, below = self._forest.inside[0], self._forest.below(0)
        families = self._forest.families(0, self._utility[inside.start : inside.stop])
        parent, child = np.nonzero(families[parents] > rounded_down(price))
        children = below.start + parents[parent] * self._forest.branching + child
        before, behind = range(inside.start, below.start), range(below.stop, inside.stop)
        return np.concatenate([self._above(price, before), children, self._above(price, behind)])

    def _set(self, blocks: Indices, value: Values) -> None:
        forest = self._forest
        self._blocks, self._value = blocks, value
        if len(forest.inside) > 1:
            below = forest.below(0)
            self._below = slice(*np.searchsorted(blocks, [below.start, below.stop]).tolist())
            self._parents = blocks[self._below] // forest.branching - forest.inside[1].start


def rounded_down(price: float) -> np.float32:
    """The largest float32 that is not more: numpy would compare with the nearest one, which may be a utility itself."""
    bound = np.float32(price)
    return bound if float(bound) <= price else np.nextafter(bound, np.float32(-np.inf))


def _worth_it(forest: Forest, children: Values, price: float) -> list[Mask]:
    """Which nodes above the blocks to expand: bool [nodes inside] for each level from 2 upwards.

    children  float64 [nodes inside on level 2]: what their children are worth, the price of these taken off.
    """
    worth = [np.maximum(children - price, 0)]
    for i in range(1, len(forest.inside) - 1):
        worth.append(np.maximum(forest.families(i, worth[-1]).sum(axis=1) - price, 0))
    above = [each > 0 for each in worth]
    for i in reversed(range(1, len(above))):
        families = forest.families(i, above[i - 1])
        families &= above[i][:, None]
    return above
