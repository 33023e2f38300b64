"""Looking again: what the first look found may name what the answer stands beside, in words that nobody asked for.

"Where is the parcel from Dara?" finds "Dara gave the parcel to Mira"; the answer is where Mira is spoken of. So the
sentences that answered the first look are read for terms that are rare in this history but stand elsewhere in it, too,
and those places become useful. Pseudo-relevance feedback (Rocchio 1971; Lavrenko & Croft 2001) with the feedback held
down to terms that point at a handful of blocks: whatever is less rare only dilutes what was asked. What is written like
a name may stand in more of them, each worth less, for budgets that have room: names are what facts are tied by.
"""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.neighbours import INHERIT, apart, spread
from megacontext_vllm.focus.query import Query
from megacontext_vllm.tree.nodes import BLOCK

LOOKS = 2  # a chain of three facts
_CLEAR, _RIVAL, _RIVALS = 0.9, 0.7, 3  # where several places answer this well, the question asks for many things
_RARE = 4  # further blocks that a term may stand in
_NAMED = 32  # or one that is written like a name
_WORTH = 0.8  # of a place that one term names, and no other block has; beside 1 for the best of the first look
_FOLLOWED = 0.5 * _WORTH  # places at least this useful are read in turn
_REACH = 32  # tokens of a sentence that are read, to either side of what was found in it
_OVERHANG = 8  # tokens beyond a block in which a hit still counts as the block's

Terms = tuple[int, ...]
"""One term, or two that stand side by side: a rare word is often several tokens."""


def look_again(
    tokens: npt.NDArray[np.uint32],
    query: Query,
    utility: npt.NDArray[np.float32],
    lens: LexicalLens,
) -> npt.NDArray[np.float32]:
    """``utility`` of the first look, float32 [N // 32] in [0, 1], raised where a second or third look leads.

    tokens  uint32 [N], the whole prompt.

    Nothing is lowered, and nothing changes where the first look found no place, or several that answer equally well.
    """
    clear = apart(utility, _CLEAR, 2)
    if len(clear) != 1 or len(apart(utility, _RIVAL, _RIVALS + 1)) > _RIVALS:
        return utility
    # What is asked is read with the history, so that its names have the same numbers.
    terms, asked = np.split(lens.named_terms(np.concatenate([tokens, query.terms.astype(np.uint32)])), [len(tokens)])
    query.blank(terms)
    known = set(asked.tolist()) - {-1}
    reader = _Reader(tokens, terms, lens)
    seen = np.zeros(len(utility), dtype=np.bool_)
    raised, found, anchors = utility.copy(), clear, known
    for _ in range(LOOKS):
        for block in found:
            seen[max(0, block - 1) : block + 2] = True
        named = {term: most for block in found for term, most in reader.named(block, anchors, known)}
        led, anchors = _places(terms, named, seen)
        if not anchors:
            break
        known = known | {part for term in named for part in term}
        lent = np.float32(INHERIT) * led
        np.maximum(raised, spread(led, lent, lent), out=raised)
        found = apart(led, _FOLLOWED, _RARE)
    return raised


class _Reader:
    """Sentences of the history around what was found. ``terms``: int32 [N], -1 for what is no term."""

    def __init__(self, tokens: npt.NDArray[np.uint32], terms: npt.NDArray[np.int32], lens: LexicalLens) -> None:
        self._tokens, self._terms, self._lens = tokens, terms, lens

    def named(self, block: int, anchors: set[int], known: set[int]) -> Iterable[tuple[Terms, int]]:
        """New terms in the sentences of a block that hold one of ``anchors``, and in how many blocks each may stand."""
        low, high = max(0, block * BLOCK - _OVERHANG), min((block + 1) * BLOCK + _OVERHANG, len(self._terms))
        hits = low + np.flatnonzero(np.isin(self._terms[low:high], list(anchors)))
        for start, stop in {self._sentence(hit) for hit in hits.tolist()}:
            words = self._terms[start:stop].tolist()
            names = self._lens.capitals(self._tokens[start:stop]).tolist()
            names[:1] = [False]  # any word is written so where a sentence begins
            for word, after, name in zip(words, [*words[1:], -1], names, strict=True):
                if word >= 0 and word not in known:
                    most = _NAMED if name else _RARE
                    yield (word,), most
                    if after >= 0 and after not in known:
                        yield (word, after), most

    def _sentence(self, hit: int) -> tuple[int, int]:
        low, high = max(0, hit - _REACH), min(hit + _REACH, len(self._tokens))
        ended = low + np.flatnonzero(self._lens.ends(self._tokens[low:high]))
        before, after = ended[ended < hit], ended[ended >= hit]
        return int(before[-1]) + 1 if len(before) else low, int(after[0]) + 1 if len(after) else high


def _places(
    terms: npt.NDArray[np.int32], named: Mapping[Terms, int], seen: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float32], set[int]]:
    """Utility [blocks] of where ``named`` terms stand besides the blocks ``seen``, and which of them do.

    named: in how many further blocks each may stand.
    """
    utility = np.zeros(len(seen), dtype=np.float32)
    used: set[int] = set()
    if not named:
        return utility, used
    numbers = int(terms.max(initial=-1)) + 2  # the last one is for -1
    count = np.bincount(terms + 1, minlength=numbers)[1:]
    # More than this cannot stand in so few blocks; of two that stand side by side, one has to be rare enough.
    already = int(seen.sum())
    named = {
        term: most for term, most in named.items() if min(count[part] for part in term) <= BLOCK * (most + already)
    }
    # A pair is looked up by its rarer part.
    rarer = {term: min(range(len(term)), key=lambda i: (count[term[i]], i)) for term in named}
    is_named = np.zeros(numbers, dtype=np.bool_)
    is_named[[term[place] for term, place in rarer.items()]] = True
    at = np.flatnonzero(is_named[terms])
    first = terms[at]
    for term, place in rarer.items():
        where = at[first == term[place]] - place
        if len(term) == 2:
            where = where[(where >= 0) & (where + 1 < len(terms))]
            where = where[(terms[where] == term[0]) & (terms[where + 1] == term[1])]
        blocks = np.unique(where // BLOCK)
        elsewhere = blocks[blocks < len(seen)]
        elsewhere = elsewhere[~seen[elsewhere]]
        if 0 < len(elsewhere) <= named[term]:
            utility[elsewhere] = np.maximum(utility[elsewhere], _WORTH / np.sqrt(np.float32(len(elsewhere))))
            used |= set(term)
    return utility, used
