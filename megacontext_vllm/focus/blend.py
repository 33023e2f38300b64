"""Two lenses make one utility: blocks that share words with the question, and blocks that share its meaning.

Each lens calls its own best block 1, so their numbers say nothing beside each other. What can be compared is how far a
block stands out from the crowd below it: where words find one place, everything else is far below it; where they find
nothing, hundreds of blocks are about as good as the best. Put like that, the two are added: what both lenses find is
found twice, and what one finds alone is far above the other's crowd. (A sum of the bare scores was measured to let
words that are shared by chance drown what is meant.) Words by themselves are doubted, the more, the less of the
question they are and the more places have as much of it: a long text has most words somewhere.
"""

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.neighbours import apart

_CROWD = 32
"""The place, counted from the best, that no longer stands out."""
_OF_CROWD = 0.1
"""Its utility. What is below keeps its order: a large budget shows hundreds of places."""
_NOTHING = 1e-6
_DOUBT = 0.3
"""A block with all of the question's words leaves this much room for meaning."""
_RIVALS = 8
"""The place, counted from the best, that says whether words found it or chance: chance finds many as good."""
_ALONE = 0.2
"""What words are worth where all is doubt, and nothing means the like."""


def blend(
    lexical: npt.NDArray[np.float32], meaning: npt.NDArray[np.float32], covered: float
) -> npt.NDArray[np.float32]:
    """Utility float32 ``[blocks]`` in [0, 2] out of those of the two lenses, of the same shape, neither changed.

    covered  in [0, 1]: how much of the question a block has word for word, at best. The more, the less meaning counts.

    Where one lens finds nothing, the other one's utility comes back as it is. Above 1 is what both have found.
    """
    if not meaning.any():
        return lexical
    if not lexical.any():
        return meaning
    crowd = _place(meaning, _CROWD)
    # Blocks by the dozen that mean equally much say no more than that the question's words are common here. Those that
    # have its very words are all worth showing.
    means = np.float32(_OF_CROWD) * meaning if crowd == 1 else _standing_out(meaning, crowd)
    alone = np.float32(max(_ALONE, 1 - (1 - covered) * _place(lexical, _RIVALS)))
    words = _standing_out(lexical, _place(lexical, _CROWD)) * (alone + (1 - alone) * means)
    means = np.float32(min(1.0, 1 + _DOUBT - covered)) * means
    both: npt.NDArray[np.float32] = words + means
    return both


def _place(utility: npt.NDArray[np.float32], number: int) -> float:
    """The utility of the place of this number, counted from the best; 0 where there are not so many places."""
    places = apart(utility, 0.0, number)
    return float(utility[places[-1]]) if len(places) == number else 0.0


def _standing_out(utility: npt.NDArray[np.float32], crowd: float) -> npt.NDArray[np.float32]:
    if not _NOTHING < crowd < 1:
        return utility
    above = _OF_CROWD + (1 - _OF_CROWD) / (1 - crowd) * (utility - crowd)
    return np.where(utility > crowd, np.minimum(above, 1), _OF_CROWD / crowd * utility).astype(np.float32)
