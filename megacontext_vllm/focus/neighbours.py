"""What a useful block lends to the blocks beside it: a fact rarely keeps to the boundaries of 32 tokens.

Where few places answer, all that is around them is worth showing. Where many answer alike, the budget is better spent
on the places themselves, and on a neighbour only if a sentence goes over to it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.best import least_of_best
from megacontext_vllm.tree.nodes import BLOCK

INHERIT = 0.95
"""What a neighbour gets where few places answer."""
_INHERIT_OF_MANY = 0.8  # by a neighbour that no sentence of the block goes over to
_ALIKE, _FEW = 0.7, 3  # blocks this good beside the best, and how many of them are few
_JUDGED = 0.5  # blocks less good than this need no exact look


def lend(
    utility: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.uint32],
    hits: Callable[[npt.NDArray[np.intp]], npt.NDArray[np.intp]],
    ends: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """``utility`` float32 [blocks] of each block for itself -> the same with what it inherits from its neighbours.

    tokens  uint32 [N ≥ 32 · blocks]. hits: of some blocks, the tokens that made them useful, ascending.
    ends    bool [V]: whether a token ends a sentence or a line; ids beyond count as the last.
    """
    best = utility.max(initial=0.0)
    to_left = to_right = np.full(len(utility), INHERIT, dtype=np.float32)
    if best > 0 and len(apart(utility, _ALIKE * best, _FEW + 1)) > _FEW:
        judged = np.flatnonzero(utility >= _JUDGED * best)
        left, right = _goes_over(judged, tokens, hits(judged), ends)
        to_left, to_right = np.full((2, len(utility)), _INHERIT_OF_MANY, dtype=np.float32)
        to_left[judged[left]] = to_right[judged[right]] = INHERIT
    return spread(utility, to_left * utility, to_right * utility)


def spread(
    utility: npt.NDArray[np.float32], to_left: npt.NDArray[np.float32], to_right: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Each block's own utility or what it is lent, whichever is more; all float32 [blocks], none is changed."""
    most = utility.copy()
    np.maximum(most[1:], to_right[:-1], out=most[1:])
    np.maximum(most[:-1], to_left[1:], out=most[:-1])
    return most


def apart(utility: npt.NDArray[np.float32], least: float, most: int) -> list[int]:
    """Up to ``most`` blocks of at least this utility, the best first (ties: the lower index), none beside a better."""
    blocks = np.flatnonzero(utility >= least)
    if len(blocks) > 3 * most:
        # Each place keeps at most two others away, so this many of the best have all that are kept; the rest need no
        # sorting.
        enough = float(least_of_best(utility[blocks], 3 * most))
        blocks = np.flatnonzero(utility >= max(least, enough))
    kept: list[int] = []
    for block in blocks[np.argsort(-utility[blocks], kind="stable")].tolist():
        if all(abs(block - other) > 1 for other in kept):
            kept.append(block)
            if len(kept) == most:
                break
    return kept


def _goes_over(
    blocks: npt.NDArray[np.intp],
    tokens: npt.NDArray[np.uint32],
    hits: npt.NDArray[np.intp],
    ends: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether the sentence of a block's first hit began in the block before, and that of its last ends behind it."""
    begin, stop = np.searchsorted(hits, blocks * BLOCK), np.searchsorted(hits, (blocks + 1) * BLOCK)
    has = begin < stop  # what is useful by its neighbours' words alone has none of its own
    left, right = np.zeros((2, len(blocks)), dtype=np.bool_)
    blocks, first, last = blocks[has], hits[begin[has]], hits[stop[has] - 1]
    ended = ends.take(tokens[: len(tokens) // BLOCK * BLOCK].reshape(-1, BLOCK)[blocks], mode="clip")  # [blocks, 32]
    place = np.arange(BLOCK, dtype=np.int8)
    left[has] = ~(ended & (place < (first - blocks * BLOCK).astype(np.int8)[:, None])).any(axis=1)
    right[has] = ~(ended & (place >= (last - blocks * BLOCK).astype(np.int8)[:, None])).any(axis=1)
    return left, right
