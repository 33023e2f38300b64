"""Which things does a question put side by side? "Origami, macrame or falconry: which of these ...?" English.

What is asked for is then any of them, and a text that has one and not the others has all that was asked for. Counted as
words that are missing, the others would say that the question's words do not find it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Joined, Spelling, word_hash
from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.tree.nodes import BLOCK

_SILENT = frozenset(map(word_hash, STOP_WORDS))


def sought(tokens: npt.NDArray[np.uint32], query: Query, spelling: Spelling, joined: Joined | None = None) -> Query:
    """``query`` without the alternatives that stand nowhere, where one of them does stand somewhere.

    tokens  uint32 [N], the history. joined: what ``spelling.joined`` makes of its full blocks, if that is known.
    """
    if not query.alternatives:
        return query
    hashes = spelling.words(query.terms)
    words = [
        {key for key in hashes[start:stop].tolist() if key and key not in _SILENT} for start, stop in query.alternatives
    ]
    if not all(words):  # numbers, for one, are no words
        return query
    keys = np.array(sorted(set().union(*words)), dtype=np.uint64)
    which = spelling.places(tokens[: len(tokens) // BLOCK * BLOCK], keys, joined)
    query.blank(which)
    at = np.flatnonzero(which >= 0)
    blocks = {key: np.unique(at[which[at] == i] // BLOCK) for i, key in enumerate(keys.tolist())}
    stand = [_stands([blocks[key] for key in alternative]) for alternative in words]
    if all(stand) or not any(stand):
        return query
    weights = query.weights.copy()
    for (start, stop), stands in zip(query.alternatives, stand, strict=True):
        if not stands:
            weights[start:stop] = 0
    return replace(query, weights=weights)


def _stands(words: Sequence[npt.NDArray[np.intp]]) -> bool:
    """Whether there is a place that has all of the words, each in one of its ascending blocks, or in one beside."""
    first, *others = sorted(words, key=len)
    for other in others:
        near = np.concatenate([other - 1, other, other + 1])
        first = first[np.isin(first, near)]
    return len(first) > 0
