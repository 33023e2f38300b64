"""Reading the best blocks closely: does one short passage say it, or do the words only happen to stand near each other?

The first look at a history takes the best word of a block, and half of its neighbours', for each word of the question:
96 tokens have a fitting word for most of it by chance. So the blocks that look best are read again through a window of
a clause's length, by two measures that a million blocks would be too many for: how much of the question one window has
(proximity, as Tao & Zhai 2007 measured it to help retrieval), and how near the mean of the window's words is to that
of the question's.

The window is not a sentence on purpose: vectors of whole sentences were measured to find planted facts better, and the
same facts inside longer sentences far worse.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacontext_vllm.tree.nodes import BLOCK

MOST = 256
"""Blocks that are read. In a million tokens what answers was measured to be among them but for one fact in forty."""
_WINDOW = 16  # tokens; with 8 or 32 less is found
_STEP = 2
_MARGIN = _WINDOW // 2  # a window belongs to the block that its middle stands in
_READ = BLOCK + 2 * _MARGIN
_FROM = np.arange(0, _READ - _WINDOW + 1, _STEP)[:, None]
_WINDOWS = ((np.arange(_READ) >= _FROM) & (np.arange(_READ) < _FROM + _WINDOW)).astype(np.float32)
"""[windows, tokens read]: 1 for the tokens that a window has."""


@dataclass(frozen=True)
class Meant:
    """A question, as LensNet knows it.

    gains    float32 ``[asked, words]``: what each word of LensNet is worth for each word asked.
    weights  float32 ``[asked]``: how much each counts.
    vectors  float32 ``[words, d]``, unit vectors. loud: float32 ``[words]``, how much each tells in a text.
    centre   float32 ``[d]``, the unit vector of the question.
    """

    gains: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    vectors: npt.NDArray[np.float32]
    loud: npt.NDArray[np.float32]
    centre: npt.NDArray[np.float32]


def read_closely(
    utility: npt.NDArray[np.float32],
    rows: Callable[[npt.NDArray[np.intp], int], npt.NDArray[np.int32]],
    meant: Meant,
) -> npt.NDArray[np.float32]:
    """``utility`` float32 [blocks] ≥ 0 of a first look -> the same in [0, 1] after reading the best of them closely.

    rows  (tokens [n], length) -> int32 [n, length]: the row of LensNet of each token from there on, -1 for none, and
          where there are no tokens.

    A third each: the first look, how much of the question one window has, how like it one is. What is not read has the
    first third only, so it stays below all that looked better.
    """
    best = utility.max(initial=0.0)
    if best <= 0:
        return utility
    closely: npt.NDArray[np.float32] = utility / (3 * best)
    read = np.flatnonzero(utility)
    if len(read) > MOST:
        read = np.sort(np.argpartition(-utility, MOST - 1)[:MOST])
    words = rows(read * BLOCK - _MARGIN, _READ)
    share, likeness = _share(words, meant), _likeness(words, meant)
    closely[read] += share / (3 * max(float(share.max()), 1e-6)) + likeness / 3
    return closely


def _share(words: npt.NDArray[np.int32], meant: Meant) -> npt.NDArray[np.float32]:
    """float32 [read]: the most that one window has of the question."""
    best = np.where(words >= 0, meant.gains[:, words], 0)  # [asked, read, 48]
    best = np.maximum(best[..., ::_STEP], best[..., 1::_STEP])
    width = _STEP
    while width < _WINDOW:  # the best of twice as many tokens, from every second one on
        apart = width // _STEP
        best = np.maximum(best[..., :-apart], best[..., apart:])
        width *= 2
    most: npt.NDArray[np.float32] = np.einsum("a,arw->rw", meant.weights, best).max(axis=1)
    return most


def _likeness(words: npt.NDArray[np.int32], meant: Meant) -> npt.NDArray[np.float32]:
    """float32 [read] in [0, 1]: the cosine of the likest window, 0 where none is like the question."""
    loud = np.where(words >= 0, meant.loud[words], 0)
    sums = _WINDOWS @ (meant.vectors[words] * loud[..., None])  # [read, windows, d]
    length = np.sqrt(np.einsum("rwd,rwd->rw", sums, sums))
    cosine: npt.NDArray[np.float32] = (sums @ meant.centre) / np.maximum(length, 1e-6)
    most: npt.NDArray[np.float32] = np.maximum(cosine.max(axis=1), 0)
    return most
