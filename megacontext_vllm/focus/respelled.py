"""Words of the question that its tokens do not tell: cut into other tokens in the history, or into stop words, or there
in another form.

A word at the start of a sentence or in capitals is often cut differently: ``Gl ass blowing``, but ``glass blowing``
within a line. Where that happens, the word counts as if it were written the question's way. And a name may be cut into
words that say nothing (``Or in``, ``Jon as``): it counts as a whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Spelling, look_up, word_hash
from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.focus.word_forms import other_forms

_SILENT = frozenset(map(word_hash, STOP_WORDS))
_SILENT_HASHES = np.array(sorted(_SILENT), dtype=np.uint64)
Slots = tuple[int, ...]
"""What of the question each token of a word is; -1 for what is no term."""


@dataclass(frozen=True)
class Respelled:
    """What is to be counted besides what was found token by token; all of one length, ``at`` ascending.

    at      intp ``[found]``: where a word begins in the history.
    form    bool ``[found]``: it is another form of the question's word, and not the word itself.
    first   int16 ``[found]``: a slot of the question that it stands for.
    second  int16 ``[found]``: the slot that follows it in the word, -1 for none.
    """

    at: npt.NDArray[np.intp]
    form: npt.NDArray[np.bool_]
    first: npt.NDArray[np.int16]
    second: npt.NDArray[np.int16]


def find_respelled(
    history: History,
    at: npt.NDArray[np.intp],
    hits: npt.NDArray[np.int16],
    query: Query,
    slots: npt.NDArray[np.int16],
) -> Respelled:
    """What there is beside ``hits``, int16 [hits], the slots of the tokens that were found ``at`` places, ascending.

    slots  int16 [terms], of what is asked.
    """
    words = _words(history.spelling, query.terms, slots)
    if not words:
        return Respelled(np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.bool_), *np.zeros((2, 0), dtype=np.int16))
    keys = np.array(sorted(words), dtype=np.uint64)
    begin, word = history.words(keys, query)
    cuts = [words[key].cut for key in keys.tolist()]
    forms = np.array([words[key].form for key in keys.tolist()])
    # What is cut as it is in the question is found already.
    asked = np.array([(cut[0], cut[1] if len(cut) > 1 else -2) for cut in cuts], dtype=np.int16)[word]
    here, behind = _slot(begin, at, hits), _slot(begin + 1, at, hits)
    other = (here != asked[:, 0]) | ((asked[:, 1] != -2) & (behind != asked[:, 1]))
    found = [
        (place, forms[which], first, second)
        for place, which in zip(begin[other].tolist(), word[other].tolist(), strict=True)
        for first, second in zip(cuts[which], [*cuts[which][1:], -1], strict=True)
        if first >= 0
    ]
    places = np.array(found, dtype=np.intp).reshape(-1, 4).T
    return Respelled(places[0], places[1].astype(np.bool_), *places[2:].astype(np.int16))


def _slot(
    places: npt.NDArray[np.intp], at: npt.NDArray[np.intp], hits: npt.NDArray[np.int16]
) -> npt.NDArray[np.int16]:
    """The slots of ``places``, -1 for those that are not in ``at``, which has ``hits``."""
    return np.append(hits, np.int16(-1))[look_up(at, places)]


def half_silent(spelling: Spelling, terms: npt.NDArray[np.int64], slots: npt.NDArray[np.int16]) -> dict[int, int]:
    """Words of the question of which a token is no term: their hash, and the first place among ``terms``."""
    found: dict[int, int] = {}
    for key, start, cut in _whole(spelling, terms, slots):
        if len(cut) > 1 and min(cut) < 0:
            found.setdefault(key, start)
    return found


def whole_words(
    spelling: Spelling, tokens: npt.NDArray[np.uint32], terms: npt.NDArray[np.int32], capital: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64]]:
    """Words of several ``tokens`` [N] that their tokens do not tell: where they begin, ascending, and their hashes.

    Such as are written like a name (``capital`` bool [N]), since they are cut otherwise where a sentence begins, and
    those of which a token is no term (-1 in ``terms`` int32 [N]).
    """
    joined = spelling.joined(tokens)
    hashes = spelling.plain(joined, tokens)
    if not len(joined.begin):
        return joined.begin, hashes
    silent = np.minimum.reduceat(terms[joined.parts], joined.heads) < 0
    told = (hashes == 0) | np.isin(hashes, _SILENT_HASHES) | ~(silent | capital[joined.begin])
    return joined.begin[~told], hashes[~told]


class _Word(NamedTuple):
    """cut: the slots of its tokens in the question. form: it is another form of that word."""

    cut: Slots
    form: bool


def _words(spelling: Spelling, terms: npt.NDArray[np.int64], slots: npt.NDArray[np.int16]) -> dict[int, _Word]:
    """The question's words that have a term, and their other forms, by their hash."""
    found: dict[int, _Word] = {}
    forms: dict[int, _Word] = {}
    for key, start, cut in _whole(spelling, terms, slots):
        if max(cut) >= 0:
            found.setdefault(key, _Word(cut, form=False))
            word = spelling.text(terms[start : start + len(cut)])
            before = spelling.text(terms[max(0, start - 2) : start])
            for form in other_forms(word, before) if word.islower() else ():  # a name has none
                forms.setdefault(word_hash(form), _Word(cut, form=True))
    forms.pop(0, None)  # too long to be a word
    return forms | found


def _whole(
    spelling: Spelling, terms: npt.NDArray[np.int64], slots: npt.NDArray[np.int16]
) -> Iterator[tuple[int, int, Slots]]:
    """(hash, first place, what its tokens are) of each word of the question that says something."""
    hashes = spelling.words(terms)
    goes_on = np.zeros(len(terms) + 1, dtype=np.bool_)
    joined = spelling.joined(terms)
    goes_on[joined.parts] = True
    goes_on[joined.begin] = False
    for start in np.flatnonzero(hashes).tolist():
        stop = start + 1
        while goes_on[stop]:
            stop += 1
        key = int(hashes[start])
        if key not in _SILENT:
            yield key, start, tuple(slots[start:stop].tolist())
