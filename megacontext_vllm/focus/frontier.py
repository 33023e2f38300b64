"""Choose the frontier of the tree under a budget: which nodes to expand when every other span shows as a gist.

A tree knapsack with precedence. Every expansion replaces one entry by its K children (a block by its K tokens), so it
costs K - 1 entries and the budget is a number of expansions; only an expanded block (level 1) has utility, and its
ancestors must be expanded too. Shared ancestors are paid once.

Method: a price per expansion (``pricing.py``) finds the set that just fits; what is left, less than one step of the
price, is filled greedily by utility per expansion with look-through. A greedy fill alone is blind to clusters: it
prefers many lone blocks, each with a path of its own, to one node full of slightly worse ones, and loses up to half.
"""

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megacontext_vllm.focus.best import least_of_best
from megacontext_vllm.focus.forest import Forest, Indices
from megacontext_vllm.focus.pricing import Mask, Utilities, best_fitting, rounded_down


def expand(
    forest: Forest, utility: Utilities, steps: int, sealed: Sequence[tuple[int, int]] = ()
) -> tuple[list[set[int]], set[int]]:
    """Choose at most ``steps`` expansions; maximise the utility of expanded blocks, then prefer recent blocks.

    utility   float32 [blocks], whole history; what is <= 0 is left to recency.
    sealed    nodes (level, index) that are never expanded: there is nothing below them any more.
    returns   (expanded, recent): per level the nodes, closed under parents inside the forest; and those expanded blocks
              that were taken for recency.
    """
    expanded = forest.nothing()
    if not forest.inside or not steps:
        return expanded, set()
    if sealed:
        utility = utility.copy()
        for level, index in sealed:
            width = forest.branching ** (level - 1)
            utility[index * width : (index + 1) * width] = 0  # what has no value is expanded for recency only
    best = _Best.of(forest, utility)
    fits, larger = best_fitting(forest, utility, best.above, steps)
    left = steps - fits.count
    expanded = fits.nodes(forest)
    if larger is not None:
        # The next larger set does not fit as a whole; part of it beats anything outside. The densest pieces first can
        # leave a hole that the most valuable piece would have filled, hence three attempts.
        of_larger = best.of_these(larger.above, rounded_down(larger.price))
        attempts = []
        for start, per_step in ((expanded, True), (expanded, False), (forest.nothing(), False)):
            attempt = [nodes.copy() for nodes in start]
            left = steps - sum(map(len, attempt))
            left = _fill(forest, attempt, of_larger, left, per_step)
            left = _fill(forest, attempt, best, left, per_step)
            attempts.append((attempt, left))
        expanded, left = max(attempts, key=lambda attempt: _worth(utility, attempt[0][0]))
    before = expanded[0].copy()
    _fill_recent(forest, expanded, left, {(level - 1, index) for level, index in sealed})
    return expanded, expanded[0] - before


def _worth(utility: Utilities, blocks: Collection[int]) -> float:
    return float(utility[sorted(blocks)].astype(np.float64).sum())


_Item = tuple[float, int, int, int, Iterator[tuple[float, int]]]
"""What the path costs, negative; where the node begins; its level - 1; its index; its siblings of less worth."""


@dataclass(frozen=True)
class _Best:
    """The utility of the best block of each node, as far as a block is worth more than ``least``; what is not is 0.

    utility  float32 [blocks]. above: float32 [nodes inside] for each level from 2 upwards.
    """

    forest: Forest
    utility: Utilities
    above: list[Utilities]
    least: np.float32

    @staticmethod
    def of(forest: Forest, utility: Utilities) -> "_Best":
        above = []
        if len(forest.inside) > 1:
            below = forest.below(0)
            blocks = utility[below.start : below.stop]
            starts = np.arange(0, len(blocks), forest.branching)
            # Of one run each, this is twice as fast as max(axis=1).
            above.append(np.maximum.reduceat(blocks, starts) if len(starts) else blocks)
        return _Best(forest, utility, _upwards(forest, above), np.float32(0))

    def of_these(self, nodes: list[Mask], least: np.float32) -> "_Best":
        """Of those on level 2 only that are among ``nodes`` (bool [nodes inside] per level)."""
        above = [np.where(nodes[0], self.above[0], np.float32(0))] if nodes else []
        return _Best(self.forest, self.utility, _upwards(self.forest, above), least)

    def among(self, i: int, nodes: Indices) -> Utilities:
        """Of ``nodes`` of level i + 1 (int [n]): float32 [n]."""
        if i:
            return self.above[i - 1][nodes - self.forest.inside[i].start]
        worth = self.utility[nodes]
        return np.where(worth > self.least, worth, np.float32(0))

    def ranked(self, i: int, parent: int) -> list[tuple[float, int]]:
        """The children on level i + 1 of a node that are worth something, with what they are worth; best first."""
        first = parent * self.forest.branching
        if i:
            first_inside = self.forest.inside[i].start
            worth = self.above[i - 1][first - first_inside : first - first_inside + self.forest.branching]
        else:
            worth = self.utility[first : first + self.forest.branching]
        order = np.argsort(-worth, kind="stable")
        least = 0.0 if i else float(self.least)
        pairs = zip(worth[order].tolist(), order.tolist(), strict=True)
        return [(value, first + child) for value, child in pairs if value > least]


def _upwards(forest: Forest, above: list[Utilities]) -> list[Utilities]:
    for i in range(1, len(forest.inside) - 1):
        above.append(forest.families(i, above[-1]).max(axis=1))
    return above


def _fill(forest: Forest, expanded: list[set[int]], best: _Best, left: int, per_step: bool) -> int:
    """Expand the path to the best block, by value or by value per missing expansion, until nothing fits. -> left."""
    k = forest.branching
    # A gist of level n is n expansions away from any of its blocks. Ties: lower position, so (value, block, level).
    heap: list[_Item] = []

    def item(i: int, worth: float, node: int, others: Iterator[tuple[float, int]]) -> _Item:
        return -worth / (i + 1 if per_step else 1), node * k**i, i, node, others

    def push_next(i: int, ranked: Iterator[tuple[float, int]]) -> None:
        for worth, node in ranked:
            heapq.heappush(heap, item(i, worth, node, ranked))
            break

    for i, nodes in enumerate(forest.frontier(expanded)):
        worth = best.among(i, nodes)
        most = left // (i + 1)  # of these can be expanded
        if len(nodes) > most:
            useful = worth >= (least_of_best(worth, most) if most else np.inf)
            nodes, worth = nodes[useful], worth[useful]
        for value, node in zip(worth.tolist(), nodes.tolist(), strict=True):
            if value > 0:
                heap.append(item(i, value, node, iter(())))
    heapq.heapify(heap)
    while heap and left:
        _, _, i, node, others = heapq.heappop(heap)
        if i + 1 > left:
            continue  # its price never falls: what would make it cheaper is its own expansion
        left -= i + 1
        expanded[i].add(node)
        push_next(i, others)
        while i:
            i -= 1
            ranked = iter(best.ranked(i, node))
            _, node = next(ranked)
            expanded[i].add(node)
            push_next(i, ranked)
    return left


def _fill_recent(forest: Forest, expanded: list[set[int]], left: int, closed: Collection[tuple[int, int]]) -> None:
    """Expand the newest blocks that still fit, newest first."""
    if not left:
        return
    k = forest.branching
    gists = [(n * k**i, i, n) for i, nodes in enumerate(forest.frontier(expanded)) for n in nodes.tolist()]
    stack = sorted(gists)  # the newest node on top
    while stack and left:
        _, i, node = stack.pop()
        if i + 1 > left or (i, node) in closed:
            continue
        left -= 1
        expanded[i].add(node)
        if i:
            stack += [(c * k ** (i - 1), i - 1, c) for c in range(node * k, (node + 1) * k)]
