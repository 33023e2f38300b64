"""What is shown where several things are looked for: the best place of each, then the second best of each.

How good a place is says nothing beside those for another question: a vague one has a hundred places that are nearly as
good as its best, a clear one has three.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def in_turn(found: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """What places are worth for all that is looked for, of what they are worth for each: float32 ``[blocks]`` in all.

    The values are those that blocks have for whatever finds them best; the places take them in turn, the first one's
    first.
    """
    values = np.sort(best_of(found))[::-1]
    turn = np.full(len(values), np.inf)
    for number, utility in enumerate(found):
        order = np.argsort(-utility, kind="stable")[: np.count_nonzero(utility)]
        turn[order] = np.minimum(turn[order], np.arange(len(order)) * len(found) + number)
    both = np.zeros_like(values)
    both[np.argsort(turn, kind="stable")] = values
    return both


def best_of(found: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """What places are worth for whichever of these is best there, the best place for each worth the same."""
    best = [float(utility.max(initial=0)) for utility in found]
    alike = [np.float32(max(best) / (most or 1)) * utility for utility, most in zip(found, best, strict=True)]
    together: npt.NDArray[np.float32] = np.maximum.reduce(alike)
    return together
