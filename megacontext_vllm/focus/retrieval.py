"""Choose blocks when everything else is hidden: order-preserving retrieval with exact cost of the gap markers.

Used where no trained GistNet exists for the served model (architecture.md, Focus): a wrong gist is noise to a frozen
model, a short marker is not. OP-RAG (Yu et al. 2024, arXiv:2409.01666) shows that chunks in document order read better
than chunks in order of score, so the shown blocks stay where they are.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

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
    budget -= gap_cost
    assert budget >= 0, "the caller checks that one marker fits"
    middle = utility[first:stop]
    by_utility = first + np.argsort(-middle, kind="stable")[: np.count_nonzero(middle > 0)]

    # Plain Python flags, padded by the shown world outside: an item of a numpy array costs ten times as much to read.
    state = bytearray(stop - first + 2)
    state[0] = state[-1] = 1

    def take(candidates: Iterable[int], budget: int) -> tuple[list[int], int]:
        taken: list[int] = []
        for block in candidates:
            # The cheapest block fills a hole; when not even that fits, nothing does.
            if budget < BLOCK - gap_cost:
                break
            at = block - first + 1
            cost = BLOCK + gap_cost * (1 - state[at - 1] - state[at + 1])
            if not state[at] and cost <= budget:
                state[at] = 1
                taken.append(block)
                budget -= cost
        return taken, budget

    lens, budget = take(by_utility.tolist(), budget)
    late, budget = take(range(stop - 1, first - 1, -1), budget)
    shown[lens] = shown[late] = recent[late] = True
    return shown, recent
