"""The lens of meaning: which blocks say what the question asks, in whatever words. LensNet does the judging.

Every word of the question stands for all words that a text may say instead, each with a probability (nets/lensnet.py).
A block's worth for it is the best word that it has: how much more probable that word is beside the question than in
this history at large, as a logarithm, so that a rare fitting word outweighs any number of common ones. Worths add up
over the words of the question, those that are rare in the history counting for more; words in the blocks beside count
half, as in the lexical lens.

A vector a block, compared with one of the question, was measured to find less at any size that a CPU can afford: what
answers is a sentence among others in its block, and the mean of the words drowns it.
"""

from functools import partial

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.close_reading import Meant, read_closely
from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.neighbours import lend, spread
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Spelling
from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.focus.words import Rows, Words
from megacontext_vllm.nets.lensnet import LensNet
from megacontext_vllm.tree.nodes import BLOCK

_NEIGHBOUR = 0.5
_EVERYWHERE = 0.9  # a word that stands in as many blocks says next to nothing, but not less than that
_LEAST = 1.0  # nats: what is less than e times as probable as anywhere is noise, and most of the work


class MeaningLens:
    """Scores blocks against a question. One per tokenizer; immutable, so threads may share it."""

    def __init__(self, spelling: Spelling, net: LensNet, ends: npt.NDArray[np.bool_]) -> None:
        """ends: bool [V], whether a token ends a sentence."""
        self._net = net
        self.words = Words(spelling, net.rows)
        """The words that LensNet knows."""
        self._ends = ends
        self._silent = {row for word in STOP_WORDS if (row := net.rows.get(word)) is not None}

    def score(self, history: History, query: Query) -> npt.NDArray[np.float32]:
        """Utility of each full block for the question; words of the question itself do not count.

        returns  float32 [N // 32] in [0, 1], the best block 1; all 0 if the question has no word that LensNet knows.
        """
        blocks = history.blocks
        total = np.zeros(blocks, dtype=np.float32)
        asked = self._asked(query)
        if not asked or not blocks:
            return total
        rows = self.words.of(history, query)
        count = rows.counts()
        common = ((count + 0.5) / (blocks + 1)).astype(np.float32)
        said = np.flatnonzero(count)
        odds = np.float32(self._net.weight) / common[said]
        gains = np.zeros((len(asked), len(count)), dtype=np.float32)
        gains[:, said] = np.log1p(odds * self._net.probabilities(list(asked), said))
        gains[gains < _LEAST] = 0
        fits: npt.NDArray[np.bool_] = np.any(gains, axis=0)
        if not fits.any():
            return total
        rare = -np.log(np.minimum(common, _EVERYWHERE))
        weights = rare[list(asked)] * np.array(list(asked.values()), dtype=np.float32)
        for own, weight in zip(rows.best(gains, blocks), weights, strict=True):
            total += weight * spread(own, _NEIGHBOUR * own, _NEIGHBOUR * own)
        closely = read_closely(total, rows.around, self._meant(list(asked), gains, weights, rare))
        lent = lend(closely, history.tokens, partial(_fitting, rows, fits), self._ends)
        return lent / np.float32(lent.max())

    def _meant(
        self,
        asked: list[int],
        gains: npt.NDArray[np.float32],
        weights: npt.NDArray[np.float32],
        rare: npt.NDArray[np.float32],
    ) -> Meant:
        loud = rare.copy()
        loud[list(self._silent)] = 0
        centre = weights @ self._net.vectors[asked]
        centre /= max(float(np.linalg.norm(centre)), 1e-6)
        return Meant(gains, weights, self._net.vectors, loud, centre)

    def _asked(self, query: Query) -> dict[int, float]:
        """The rows of the question's words, in order, and how much each counts."""
        found: dict[int, float] = {}
        rows = self.words.rows(query.terms.astype(np.uint32))
        for row, weight in zip(rows.tolist(), query.weights.tolist(), strict=True):
            if row >= 0 and weight > 0 and row not in self._silent:
                found[row] = max(found.get(row, 0.0), weight)
        return found


def _fitting(rows: Rows, fits: npt.NDArray[np.bool_], blocks: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The tokens of ``blocks``, ascending, whose rows are among those that ``fits``, bool ``[rows of the table]``."""
    inside = rows.around(blocks * BLOCK, BLOCK)
    block, place = np.nonzero((inside >= 0) & fits[inside])
    return blocks[block] * BLOCK + place
