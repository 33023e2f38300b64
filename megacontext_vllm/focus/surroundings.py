"""Where one place has all that was asked for, word for word, the rest of the budget goes to the text around it.

The other places that share a part of the question's words are then most likely about something else of the same kind:
thirty sentences that differ from the right one in a name. A small reader that is shown them all picks any of them; the
text that goes on around the right one does not distract it (docs/quality.md, ``many_keys``). Where several places have
all of it and the question asks for what holds now, the last of them is that one place.
"""

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.neighbours import apart

_ALL = 0.8  # of the question, in one place, word for word
_SOME = 1e-6
_ALIKE = 0.9  # of what the best place has of it: the others lack a word at least
_FEW = 3  # places that have as much; with more of them, all are asked for
_VERSIONS = 8  # of what is told anew; what is spoken of in more places is a subject, no fact that changed
_OUTDATED = 0.4  # of the last one's worth: less than what stands around it, more than what chance finds
_RIVAL = 6  # two thirds of the words are then worth less than a tenth
_REACH = 32  # blocks, on either side; at an end of the history more on the other
_ALL_OF_IT = 0.95
_NEAR, _FAR = (0.38, 0.75), (0.2, 0.45)
"""Of a place's worth, what the first and the last of them are worth: with ``_ALL``, and with ``_ALL_OF_IT``. The former
is less than what the place names, which may be asked for with what the question still has."""
_CLOSE, _LEFT = 8, 0.03
"""So many blocks away, fewer where places share them, so much is left of what the first is worth more: what a place
names comes before the rest."""


def answering(lexical: npt.NDArray[np.float32], share: npt.NDArray[np.float32]) -> list[int]:
    """The blocks that have all of the question, where they are few; none where nothing has, or many.

    lexical, share: float32 [blocks] in [0, 1], ``Found.utility`` and ``Found.share``.
    """
    return _places(lexical, share, _FEW)


def versions(lexical: npt.NDArray[np.float32], share: npt.NDArray[np.float32]) -> list[int]:
    """The same where what changes is asked for: the blocks that may each tell it anew, the last one first."""
    return sorted(_places(lexical, share, _VERSIONS), reverse=True)


def _places(lexical: npt.NDArray[np.float32], share: npt.NDArray[np.float32], most: int) -> list[int]:
    best = share.max(initial=0)
    if best < _ALL:
        return []
    places = apart(np.where(share >= _ALIKE * best, lexical, 0), _SOME, most + 1)
    return places if len(places) <= most else []


def outdate(utility: npt.NDArray[np.float32], told: list[int]) -> npt.NDArray[np.float32]:
    """``utility`` float32 [blocks] with all but the first of ``told``, as of ``versions``, worth less; a new array."""
    lowered = utility.copy()
    for place in told[1:]:
        # What it lends its neighbours goes as well.
        around = [block for block in range(max(0, place - 1), min(place + 2, len(utility))) if abs(block - told[0]) > 1]
        lowered[around] = np.minimum(lowered[around], np.float32(_OUTDATED) * min(1.0, float(utility[told[0]])))
    return lowered


def without_rivals(lexical: npt.NDArray[np.float32], share: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """What has a part of the words only is worth less beside what has all: float32 [blocks], a new array."""
    return np.where(share < _ALIKE * share.max(initial=0), lexical**_RIVAL, lexical)


def surround(utility: npt.NDArray[np.float32], places: list[int], covered: float) -> npt.NDArray[np.float32]:
    """``utility`` float32 [blocks], raised around ``places``, the nearer the more; a new array.

    covered: how much of the question the best of them has. The more, the more what stands around it is worth.
    """
    raised = utility.copy()
    close = max(2, _CLOSE // max(1, len(places)))
    near, far = (np.interp(covered, (_ALL, _ALL_OF_IT), bounds) for bounds in (_NEAR, _FAR))
    for place in places:
        low = max(0, min(place - _REACH, len(raised) - 2 * _REACH - 1))
        around = np.arange(low, min(low + 2 * _REACH + 1, len(raised)))
        away = np.abs(around - place)
        worth = np.interp(away, (1, close, _REACH), (near, far + _LEFT * (near - far), far))
        worth[away == 0] = 1
        worth = (min(1.0, float(utility[place])) * worth).astype(np.float32)
        raised[around] = np.maximum(raised[around], worth)
    return raised
