"""A question that leans on the one before: of the places that have its own words, those that speak of whom it is about.

"When did he die?", behind "Who kept the harbour?" – "Amos Reed.", has one word of its own, and the text many that died.
What was asked and answered before is told in a place that is no answer now, however many of the names it has; so the
names find no place by themselves, but say which of the question's own places is meant.
"""

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.lexical import Found

_OWN = 0.2  # of the best place for the question's own words: others are not compared by names
_UNNAMED = 0.4  # what a place is worth where none of the names stands, beside one that has what others have of them
_BY_CHANCE = 0.3  # share of what it leans on that says that a place speaks of it; of less, names decide less
_ALL, _ALL_NAMES = 0.8, 0.8  # of the question, and of what the best place has of the names
_ONE_PLACE = 4  # blocks in which all that has all of both stands
_SOMEBODY_ELSE = 0.95  # of what a place is worth that has neither
_FADES = (1.0, 0.95, 0.85, 0.75, 0.65)
"""A name counts in the blocks after and before it, too, by how far away they are: there it is a pronoun."""


def narrow(
    own: Found, meant: npt.NDArray[np.float32], before: Found, both: Found
) -> tuple[Found, npt.NDArray[np.float32]]:
    """What the lenses find for a question, with places worth less that do not speak of what it leans on.

    own, meant  of its own words: by words, and float32 [blocks] in [0, 1] by meaning.
    before      by the words that it leans on. both: by all of them, its own counting for more.
    returns     by words and by meaning, the best block 1 again; new arrays. Where nothing has any word of its own, what
                it leans on is all there is to look for.
    """
    ours = np.maximum(own.utility, meant)
    if not ours.any():
        return before, meant
    speaks = before.share.copy()
    for away, fade in enumerate(_FADES[1:], start=1):
        np.maximum(speaks[away:], np.float32(fade) * before.share[:-away], out=speaks[away:])
        np.maximum(speaks[:-away], np.float32(fade) * before.share[away:], out=speaks[:-away])
    most = float(speaks[ours >= _OWN].max(initial=0))
    matters = (1 - _UNNAMED) * min(1.0, most / _BY_CHANCE)
    named = np.minimum(speaks / np.float32(most or 1), 1)
    has_all = np.flatnonzero((own.share >= _ALL) & (named >= _ALL_NAMES))
    if most >= _BY_CHANCE and len(has_all) and has_all[-1] - has_all[0] < _ONE_PLACE:
        # Whoever has a part of the names is somebody else then. What was answered before has all of
        # what is leant on, and is no measure.
        named = np.minimum(named / named[has_all].max(), 1)
        factor = (1 - _SOMEBODY_ELSE * (1 - named**2)).astype(np.float32)
        return Found(_best_one(factor * both.utility), own.covered, factor * own.share), factor * meant
    factor = (1 - matters * (1 - named)).astype(np.float32)
    return (
        Found(_best_one(factor * both.utility), own.covered, factor * own.share),
        _best_one(factor * meant),
    )


def _best_one(utility: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return utility / np.float32(utility.max(initial=0) or 1)
