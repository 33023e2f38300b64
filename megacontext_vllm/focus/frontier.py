"""Choose the frontier of the tree under a budget: which nodes to expand when every other span shows as a gist.

A tree knapsack with precedence. Every expansion replaces one entry by its K children (a block by its K tokens), so it
costs K - 1 entries and the budget is a number of expansions; only an expanded block (level 1) has utility, and its
ancestors must be expanded too. Shared ancestors are paid once.

Method: Lagrangian relaxation. At a price per expansion the best set is found in one pass upwards, value = max(0, sum of
the children's values - price), and the price is bisected until the set just fits. Sets found this way are optimal for
their own size (Everett 1963); what is left, less than one step of the price, is filled greedily by utility per
expansion with look-through. A greedy fill alone is blind to clusters: it prefers many lone blocks, each with a path of
its own, to one node full of slightly worse ones, and loses up to half.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

# Halvings of the price: utilities are float32, more steps than its mantissa has bits change nothing.
_PRICE_STEPS = 30
_ENOUGH = 64
"""So many blocks for every expansion mostly hold all that are worth their price, and save looking at the others."""


@dataclass(frozen=True)
class Forest:
    """The complete nodes inside the blocks ``[first, stop)`` of a tree with ``branching`` children per node.

    inside[i]    bool [nodes of level i + 1]: the node covers blocks of ``[first, stop)`` only
    """

    branching: int
    inside: list[Mask]

    @staticmethod
    def over(num_blocks: int, first: int, stop: int, branching: int) -> "Forest":
        """Forest of the first ``num_blocks`` blocks; levels exist as far as complete nodes do."""
        assert 0 <= first <= stop <= num_blocks
        assert branching >= 2
        inside = []
        size = 1
        while num_blocks // size:
            start = np.arange(num_blocks // size) * size
            inside.append((start >= first) & (start + size <= stop))
            size *= branching
        return Forest(branching, inside)

    def families(self, i: int, values: Values) -> Values:
        """float [nodes of level i] -> [nodes of level i + 1, children]: each complete group of siblings."""
        parents = len(self.inside[i])
        return values[: parents * self.branching].reshape(parents, self.branching)

    def open_below(self, i: int, expanded: list[Mask]) -> Mask:
        """bool [nodes of level i + 1]: the node is on display or expanded, i.e. no unexpanded ancestor hides it."""
        visible = self.inside[i].copy()
        if i + 1 < len(self.inside):
            # A parent that is not inside is never shown: its children are roots of the forest.
            above = expanded[i + 1] | ~self.inside[i + 1]
            covered = np.repeat(above, self.branching)[: len(visible)]
            visible[: len(covered)] &= covered
        return visible

    def frontier(self, expanded: list[Mask]) -> list[Mask]:
        """Per level, the nodes on display as gists: not expanded, below nothing but expanded nodes."""
        return [self.open_below(i, expanded) & ~expanded[i] for i in range(len(self.inside))]

    def nothing(self) -> list[Mask]:
        """The coarsest state: no node expanded."""
        return [np.zeros_like(mask) for mask in self.inside]


def expand(
    forest: Forest, utility: npt.NDArray[np.float32], steps: int, sealed: Sequence[tuple[int, int]] = ()
) -> tuple[list[Mask], Mask]:
    """Choose at most ``steps`` expansions; maximise the utility of expanded blocks, then prefer recent blocks.

    utility   float32 [blocks], whole history; what is <= 0 is left to recency.
    sealed    nodes (level, index) that are never expanded: there is nothing below them any more.
    returns   (expanded, recent): per level bool [nodes], closed under parents inside the forest; and bool [blocks],
              those expanded blocks that were taken for recency.
    """
    expanded = forest.nothing()
    if not forest.inside:
        return expanded, np.zeros(0, dtype=np.bool_)
    value = np.where(forest.inside[0], np.maximum(utility, 0), 0).astype(np.float64)
    closed = forest.nothing()
    for level, index in sealed:
        width = forest.branching ** (level - 1)
        value[index * width : (index + 1) * width] = 0  # what has no value is expanded for recency only
        closed[level - 1][index] = True
    low, high = 0.0, float(value.max())
    most = _ENOUGH * max(steps, 1)
    if len(value) > most:
        low = float(np.partition(value, len(value) - most)[len(value) - most])
    blocks = np.flatnonzero(value > low)
    wanted = _at_price(forest, blocks, value, low)
    if low and _count(wanted) <= steps:
        expanded, low, high = wanted, 0.0, low
        blocks = np.flatnonzero(value)
        wanted = _at_price(forest, blocks, value, low)
    for _ in range(_PRICE_STEPS if _count(wanted) > steps else 0):
        price = (low + high) / 2
        chosen = _at_price(forest, blocks, value, price)
        if _count(chosen) <= steps:
            expanded, high = chosen, price
        else:
            wanted, low = chosen, price
            blocks = blocks[value[blocks] > low]
    # The next larger set does not fit as a whole (or there is no need for prices); part of it beats anything outside.
    # The densest pieces first can leave a hole that the most valuable piece would have filled, hence three attempts.
    best, best_wanted = _best_inside(forest, value), _best_inside(forest, np.where(wanted[0], value, 0.0))
    attempts = []
    for start, per_step in ((expanded, True), (expanded, False), (forest.nothing(), False)):
        attempt = [mask.copy() for mask in start]
        left = steps - _count(attempt)
        left = _fill(forest, attempt, best_wanted, left, per_step)
        left = _fill(forest, attempt, best, left, per_step)
        attempts.append((attempt, left))
    expanded, left = max(attempts, key=lambda attempt: float(value[attempt[0][0]].sum()))
    before = expanded[0].copy()
    _fill_recent(forest, expanded, left, closed)
    return expanded, expanded[0] & ~before


def _count(expanded: list[Mask]) -> int:
    return sum(int(np.count_nonzero(mask)) for mask in expanded)


def _at_price(forest: Forest, blocks: Indices, value: Values, price: float) -> list[Mask]:
    """The best set of expansions if each costs ``price``; sizes grow as the price falls.

    blocks  int [·]: where to look at all. What is left out must have no ``value`` (float [blocks]) above the price.
    """
    gain = value[blocks] - price
    blocks, gain = blocks[gain > 0], gain[gain > 0]
    expanded, visible = forest.nothing(), forest.inside[0][blocks]
    if len(forest.inside) > 1:
        families, parents = len(forest.inside[1]), blocks // forest.branching
        in_family = parents < families
        parents = parents[in_family]
        children = np.bincount(parents, gain[in_family], families)
        worth = [np.where(forest.inside[1], np.maximum(children - price, 0), 0)]
        for i in range(2, len(forest.inside)):
            children = forest.families(i, worth[-1]).sum(axis=1)
            worth.append(np.where(forest.inside[i], np.maximum(children - price, 0), 0))
        for i in reversed(range(1, len(forest.inside))):
            expanded[i] = (worth[i - 1] > 0) & forest.open_below(i, expanded)
        visible[in_family] &= (expanded[1] | ~forest.inside[1])[parents]
    expanded[0][blocks[visible]] = True
    return expanded


def _best_inside(forest: Forest, value: Values) -> list[Values]:
    """Per level, the ``value`` (float [blocks]) of the best block of each node."""
    best = [value]
    for i in range(1, len(forest.inside)):
        best.append(forest.families(i, best[-1]).max(axis=1))
    return best


def _fill(forest: Forest, expanded: list[Mask], best: list[Values], left: int, per_step: bool) -> int:
    """Expand the path to the best block, by value or by value per missing expansion, until nothing fits. -> left."""
    k = forest.branching
    # A gist of level n is n expansions away from any of its blocks. Ties: lower position, so (value, block, level).
    heap: list[tuple[float, int, int, int]] = []
    for i, mask in enumerate(forest.frontier(expanded)):
        nodes = np.flatnonzero(mask & (best[i] > 0))
        heap += [(-float(best[i][n]) / (i + 1 if per_step else 1), int(n) * k**i, i, int(n)) for n in nodes]
    heapq.heapify(heap)
    while heap and left:
        _, _, i, node = heapq.heappop(heap)
        if i + 1 > left:
            continue  # its price never falls: what would make it cheaper is its own expansion
        left -= i + 1
        expanded[i][node] = True
        while i:
            i -= 1
            below = best[i][node * k : (node + 1) * k]
            winner = int(below.argmax())
            for child in np.flatnonzero(below > 0).tolist():
                if child != winner:
                    at = node * k + child
                    heapq.heappush(heap, (-float(below[child]) / (i + 1 if per_step else 1), at * k**i, i, at))
            node = node * k + winner
            expanded[i][node] = True
    return left


def _fill_recent(forest: Forest, expanded: list[Mask], left: int, closed: list[Mask]) -> None:
    """Expand the newest blocks that still fit, newest first."""
    k = forest.branching
    gists = forest.frontier(expanded)
    roots = [(int(n) * k**i, i, int(n)) for i, mask in enumerate(gists) for n in np.flatnonzero(mask)]
    stack = sorted(roots)  # the newest node on top
    while stack and left:
        _, i, node = stack.pop()
        if i + 1 > left or closed[i][node]:
            continue
        left -= 1
        expanded[i][node] = True
        if i:
            stack += [(c * k ** (i - 1), i - 1, c) for c in range(node * k, (node + 1) * k)]
