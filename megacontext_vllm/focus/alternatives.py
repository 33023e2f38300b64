"""Which things does a question put side by side? "Origami, macrame or falconry: which of these ...?" English.

What is asked for is then any of them, and a text that has one and not the others has all that was asked for. Counted as
words that are missing, the others would say that the question's words do not find it.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.neighbours import apart
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import word_hash
from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.tree.nodes import BLOCK

_FEW = 3
"""Places that have one of the alternatives. Where more do, it may stand in them by chance, and another one be meant."""
_NEAR = 16
"""Blocks within which what a text speaks of is named again. What is named once may be there by chance, too."""
_WORD = re.compile(r"[^\W\d_]+")


def sought(history: History, query: Query) -> Query:
    """``query`` without the alternatives that stand nowhere, where others do, in few places, more than once in each."""
    if not query.alternatives:
        return query
    things = [_words(text) for _, _, text in query.alternatives]
    if not all(things):  # numbers, for one, are no words
        return query
    keys = np.array(sorted({key for words in things for forms in words for key in forms}), dtype=np.uint64)
    at, which = history.words(keys, query)
    blocks = {key: at[which == i] // BLOCK for i, key in enumerate(keys.tolist())}
    found = [_places([np.concatenate([blocks[key] for key in forms]) for forms in words]) for words in things]
    everywhere = np.zeros(history.blocks, dtype=np.float32)
    everywhere[np.concatenate(found)] = 1
    if all(map(len, found)) or not 0 < len(apart(everywhere, 1, _FEW + 1)) <= _FEW:
        return query
    if not all(_again(places) for places in found if len(places)):
        return query
    weights = query.weights.copy()
    for (start, stop, _), places in zip(query.alternatives, found, strict=True):
        if not len(places):
            weights[start:stop] = 0
    return replace(query, weights=weights)


def _again(places: npt.NDArray[np.intp]) -> bool:
    """Whether each of these mentions of a thing has another one near."""
    near = np.diff(np.sort(places)) <= _NEAR
    return bool((np.append(near, False) | np.append(False, near)).all()) and len(places) > 1


def _words(text: str) -> list[list[int]]:
    """The hashes of the forms of each of the words of one alternative that say something."""
    words = [word for word in _WORD.findall(text.casefold()) if word not in STOP_WORDS]
    return [[key for form in _forms(word) if (key := word_hash(form))] for word in words]


def _forms(word: str) -> set[str]:
    """A word, and what may be its singular or plural: one in the question, the other in the text.

    Not its other forms (word_forms.py): whoever speaks of something gilded need not speak of gilding.
    """
    forms = {word, word + "s", word + "es"}
    if word.endswith("y"):
        forms.add(word[:-1] + "ies")
    for ending, singular in (("ies", "y"), ("es", ""), ("s", "")):
        if word.endswith(ending):
            forms.add(word.removesuffix(ending) + singular)
    return forms - {""}


def _places(words: Sequence[npt.NDArray[np.intp]]) -> npt.NDArray[np.intp]:
    """The blocks that have all of the words, each in one of its blocks, or in one beside."""
    first, *others = sorted(words, key=len)
    for other in others:
        near = np.concatenate([other - 1, other, other + 1])
        first = first[np.isin(first, near)]
    return first
