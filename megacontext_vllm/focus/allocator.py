"""The Focus Allocator: utilities of blocks and a budget in, a Working Context out.

Two ways to show what is not worth its raw tokens: as gists (``frontier.py``), or hidden behind gap markers
(``retrieval.py``) where the served model has no trained GistNet. Here live what both share: the pinned head and tail,
the budget errors, and the assembly of entries.
"""

from collections.abc import Sequence
from itertools import repeat
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from megacontext_vllm.errors import BudgetError
from megacontext_vllm.focus.forest import Forest
from megacontext_vllm.focus.frontier import expand
from megacontext_vllm.focus.retrieval import retrieve
from megacontext_vllm.focus.working_context import Entry, Kind, WorkingContext
from megacontext_vllm.tree.nodes import BLOCK


def allocate(
    length: int,
    window: int,
    utility: npt.NDArray[np.float32],
    *,
    head: int,
    tail: int,
    gists: bool,
    gap_cost: int = 0,
    sealed: Sequence[tuple[int, int]] = (),
    pinned: Sequence[tuple[int, int]] = (),
) -> WorkingContext:
    """The Working Context of a history of ``length`` tokens within ``window`` entries.

    utility     float [length // 32], finite: what each block is worth raw. Values <= 0 say "not because of this".
    head, tail  tokens pinned raw at the start and the end, rounded outwards to whole blocks. The unfinished tail is
                always raw.
    gists       show the rest as gists; else hide it.
    gap_cost    tokens of the marker that stands for a hidden run (only without gists).
    sealed      nodes (level, index) of which only the gist is left (only with gists): shown as it, never expanded.
    pinned      ranges [start, end) of tokens that are raw, too, wherever they stand; rounded outwards to whole blocks.
    raises      BudgetError if the pinned parts, with the least that can stand for the rest, exceed the window; or if
                they need what is below a sealed node.

    A history that fits the window is all raw. Deterministic: equal utilities go to the lower index, budget that no
    utility asks for to the most recent blocks.
    """
    blocks = length // BLOCK
    assert utility.shape == (blocks,), f"one utility per block: {utility.shape} for {blocks} blocks"
    assert bool(np.isfinite(utility).all()), "utilities must be finite"
    assert min(length, head, tail, gap_cost) >= 0, "counts of tokens"
    first = min(-(-head // BLOCK), blocks)
    stop = max(min((length - tail) // BLOCK, blocks), 0)
    plan = _Plan(length, utility.astype(np.float32, copy=False), first, max(first, stop), pinned)
    if length <= window:
        plan.show(np.ones(blocks, dtype=np.bool_), np.ones(blocks, dtype=np.bool_))
        return plan.finish(window)

    stop = plan.stop
    ends = length - (stop - first) * BLOCK
    spare = window - ends
    if gists:
        forest = Forest.over(blocks, first, stop, BLOCK)
        for level, index in sealed:
            if level > len(forest.inside) or index not in forest.inside[level - 1]:
                raise BudgetError(f"the pinned head or tail reaches into sealed node {index} of level {level}")
        coarsest = sum(map(len, forest.frontier(forest.nothing())))
        _require(spare, coarsest, window, ends, "gists")
        expanded, late = expand(forest, plan.wanted, (spare - coarsest) // (BLOCK - 1), sealed)
        plan.cover(forest.frontier(expanded))
        shown = np.ones(blocks, dtype=np.bool_)
        shown[first:stop] = False
        shown[[*expanded[0]] if expanded else []] = True
        recent = np.zeros(blocks, dtype=np.bool_)
        recent[[*late]] = True
    else:
        marker = gap_cost if first < stop else 0
        _require(spare, marker, window, ends, "tokens of a gap marker")
        shown, recent = retrieve(plan.wanted, first, stop, spare, gap_cost)
        plan.hide(shown, gap_cost)
    if not shown[plan.pinned].all():
        missing = int(np.count_nonzero(~shown[plan.pinned]))
        raise BudgetError(
            f"The window of {window} entries cannot hold {missing} of the {plan.pinned.sum()} blocks that are "
            "pinned between its head and its tail. Raise the window, or pin a shorter tail."
        )
    plan.show(shown, recent)
    return plan.finish(window)


def raw_utility(context: WorkingContext, utility: npt.NDArray[np.float32]) -> float:
    """What ``allocate`` maximises: the sum of ``utility`` (float [length // 32]) over the whole blocks shown raw."""
    raw = [entry.index for entry in context.entries if entry.kind is Kind.RAW and entry.index < len(utility)]
    return float(utility[raw].sum(dtype=np.float64))


def _require(spare: int, least: int, window: int, ends: int, what: str) -> None:
    if spare < least:
        raise BudgetError(
            f"The window of {window} entries cannot hold the pinned head and tail ({ends} tokens in whole blocks) "
            f"and the least that stands for the rest ({least} {what}): {ends + least - window} entries too many. "
            "Raise the window, or pin a shorter head or tail."
        )


def _best_of_runs(
    utility: npt.NDArray[np.float32], first: npt.NDArray[np.intp], stop: npt.NDArray[np.intp]
) -> npt.NDArray[np.float32]:
    """The best ``utility`` (float32 [blocks]) of each run of blocks [first, stop), both int [n], ascending, apart."""
    edges = np.stack([first, stop], axis=1).reshape(-1)
    if len(edges) and edges[-1] == len(utility):
        edges = edges[:-1]  # the end of the last run goes without saying
    best: npt.NDArray[np.float32] = np.maximum.reduceat(utility, edges)[::2] if len(edges) else utility[:0]
    return best


class _Plan:
    """Entries under construction; order does not matter until ``finish``."""

    def __init__(
        self,
        length: int,
        utility: npt.NDArray[np.float32],
        first: int,
        stop: int,
        pinned: Sequence[tuple[int, int]],
    ) -> None:
        self.length, self.utility, self.first, self.stop = length, utility, first, stop
        self.pinned = np.zeros(len(utility), dtype=np.bool_)
        for start, end in pinned:
            self.pinned[start // BLOCK : -(-end // BLOCK)] = start < end
        self.wanted = utility
        """``utility`` as the choice is made by it: nothing is worth more than what is pinned."""
        if self.pinned.any():
            self.wanted = utility.copy()
            self.wanted[self.pinned] = max(float(utility.max(initial=0)), 0.0) + 1
        self.entries: list[Entry] = []

    def show(self, shown: npt.NDArray[np.bool_], recent: npt.NDArray[np.bool_]) -> None:
        """Raw entries for the blocks ``shown`` (bool [blocks]) and for the unfinished tail."""
        blocks = np.flatnonzero(shown)
        for block, late, score in zip(
            blocks.tolist(), recent[blocks].tolist(), self.utility[blocks].tolist(), strict=True
        ):
            if block < self.first:
                reason = "head"
            elif block >= self.stop:
                reason = "tail"
            elif self.pinned[block]:
                reason = "pinned"
            else:
                reason = "recent" if late else "lens"
            start = block * BLOCK
            self.entries.append(Entry(Kind.RAW, 1, block, start, start + BLOCK, BLOCK, reason, score))
        start = len(shown) * BLOCK
        if start < self.length:
            cost = self.length - start
            self.entries.append(Entry(Kind.RAW, 1, len(shown), start, self.length, cost, "tail", 0.0))

    def cover(self, frontier: list[npt.NDArray[np.intp]]) -> None:
        """Gists for the nodes of ``frontier`` (int [nodes] per level, ascending)."""
        for i, nodes in enumerate(frontier):
            blocks = BLOCK**i
            width = blocks * BLOCK
            best = _best_of_runs(self.utility, nodes * blocks, (nodes + 1) * blocks)
            start = nodes * width
            columns = (nodes.tolist(), start.tolist(), (start + width).tolist())
            same = repeat(Kind.GIST), repeat(i + 1), *columns, repeat(1), repeat("cover"), best.tolist()
            # By the thousand: _make takes a third of the time of the constructor.
            self.entries += map(Entry._make, zip(*same))

    def hide(self, shown: npt.NDArray[np.bool_], gap_cost: int) -> None:
        """One gap per run of blocks that are not ``shown`` (bool [blocks])."""
        edges = np.concatenate([[-1], np.flatnonzero(shown), [len(shown)]])
        after = np.flatnonzero(np.diff(edges) > 1)
        first, stop = edges[after] + 1, edges[after + 1]
        best = _best_of_runs(self.utility, first, stop)
        for start, end, score in zip(first.tolist(), stop.tolist(), best.tolist(), strict=True):
            self.entries.append(Entry(Kind.GAP, 1, start, start * BLOCK, end * BLOCK, gap_cost, "gap", score))

    def finish(self, window: int) -> WorkingContext:
        """The checked Working Context."""
        self.entries.sort(key=attrgetter("start"))
        return WorkingContext(tuple(self.entries), self.length, window)
