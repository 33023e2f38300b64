"""Where one place has all that was asked for, word for word, the rest of the budget goes to the text around it.

The other places that share a part of the question's words are then most likely about something else of the same kind:
thirty sentences that differ from the right one in a name. A small reader that is shown them all picks any of them; the
text that goes on around the right one does not distract it (docs/quality.md, ``many_keys``).
"""

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.neighbours import apart

_ALL = 0.8  # of the question, in one block, word for word
_ALIKE, _FEW = 0.8, 3  # places this good beside the best; with more of them, all are asked for
_REACH = 32  # blocks, on either side
_NEAR, _FAR = 0.38, 0.2  # of a place's worth: what the first and the last of them are worth, less than what it names


def answering(lexical: npt.NDArray[np.float32], covered: float) -> list[int]:
    """The blocks that have all of the question, where they are few; none where nothing has, or many.

    lexical: float32 [blocks] in [0, 1]. covered: how much of the question the best block has.
    """
    places = apart(lexical, _ALIKE, _FEW + 1) if covered >= _ALL else []
    return places if len(places) <= _FEW else []


def without_rivals(lexical: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What has a part of the words only is worth less beside what has all: float32 [blocks], a new array."""
    return np.where(lexical < _ALIKE, lexical * lexical, lexical)


def surround(utility: npt.NDArray[np.float32], places: list[int]) -> npt.NDArray[np.float32]:
    """``utility`` float32 [blocks], raised around ``places``, the nearer the more; a new array."""
    raised = utility.copy()
    worth = np.linspace(_NEAR, _FAR, _REACH, dtype=np.float32)
    for place in places:
        around = np.minimum(1, utility[place]) * np.concatenate([worth[::-1], [1], worth])
        low, high = max(0, place - _REACH), min(len(raised), place + _REACH + 1)
        part = around[low - place + _REACH : high - place + _REACH]
        np.maximum(raised[low:high], part, out=raised[low:high])
    return raised
