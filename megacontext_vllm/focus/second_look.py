"""Looking again: what the first look found may name what the answer stands beside, in words that nobody asked for.

"Where is the parcel from Dara?" finds "Dara gave the parcel to Mira"; the answer is where Mira is spoken of. So the
sentences that answered the first look are read for terms that are rare in this history but stand elsewhere in it, too,
and those places become useful. Pseudo-relevance feedback (Rocchio 1971; Lavrenko & Croft 2001) with the feedback held
down to terms that point at a handful of blocks: whatever is less rare only dilutes what was asked. What is written like
a name may stand in more of them, each worth less, for budgets that have room: names are what facts are tied by.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.named_text import NamedText
from megacontext_vllm.focus.neighbours import INHERIT, apart, spread
from megacontext_vllm.focus.query import Query
from megacontext_vllm.tree.nodes import BLOCK

LOOKS = 2  # a chain of three facts
_CLEAR, _RIVAL, _RIVALS = 0.9, 0.7, 3  # where several places answer this well, the question asks for many things
_RARE = 4  # further blocks that a term may stand in
_NAMED = 32  # or one that is written like a name
_WORTH = 0.8  # of a place that one term names, and no other block has; beside 1 for the best of the first look
_BESIDE_NAME = 0.75  # of that, where a name leads to one place: a rare word may stand twice by chance
_FOLLOWED = 0.5 * _WORTH  # places at least this useful are read in turn
_REACH = 32  # tokens of a sentence that are read, to either side of what was found in it
_OVERHANG = 8  # tokens beyond a block in which a hit still counts as the block's

_NEWEST, _OLDER = 32, 0.7  # tokens at the end of an answer, and what the names before them are worth beside theirs
_BESIDE = 0.85  # of a place that an answer names
_AHEAD, _AT_MOST = 1.5, 0.85  # what an answer names is worth more than what a place names, less than what is asked

Terms = tuple[int, ...]
"""One term, or two that stand side by side: a rare word is often several tokens."""


class Lead(NamedTuple):
    """Where a term may lead. ``name``: it is written like one. ``worth``: in (0, 1], of the place that names it."""

    name: bool
    worth: float = 1.0

    @property
    def most(self) -> int:
        """In how many further blocks it may stand."""
        return _NAMED if self.name else _RARE

    def joined(self, other: "Lead") -> "Lead":
        """Of a term that is named twice: a name at the start of a sentence is still the name that it is within one."""
        return Lead(self.name or other.name, max(self.worth, other.worth))


def look_again(
    history: History,
    query: Query,
    utility: npt.NDArray[np.float32],
    lens: LexicalLens,
) -> npt.NDArray[np.float32]:
    """``utility`` of the first look, float32 [N // 32] in [0, 1], raised where a second or third look leads.

    Nothing is lowered, and nothing changes where the first look found no place, or several that answer equally well.
    """
    clear = apart(utility, _CLEAR, 2)
    if len(clear) != 1 or len(apart(utility, _RIVAL, _RIVALS + 1)) > _RIVALS:
        return utility
    reader = _Reader(history, query, lens)
    return reader.follow(utility, {clear[0]: 1.0}, reader.asked, reader.asked, LOOKS)


def look_ahead(
    history: History, asked: npt.NDArray[np.int64], said: Query, lens: LexicalLens
) -> npt.NDArray[np.float32]:
    """Where an answer under way leads by what its end names: float32 [N // 32] in [0, 1].

    asked  int64 [terms], of the question, which lead nowhere new. said: the end of the answer, as of ``answered``.

    As the second look, but what was said is read in place of what was found: "Dara gave it to Mira", says the answer,
    and has to know next where Mira is spoken of.
    """
    reader = _Reader(history, replace(said, terms=asked), lens)
    start, stop = said.recent
    middle = max(start, stop - _NEWEST)
    nothing = np.zeros(history.blocks, dtype=np.bool_)
    older = _gathered(reader.named_in_answer(start, middle))
    newest = _gathered(reader.named_in_answer(middle, stop))
    newest = {term: lead.joined(older.pop(term, lead)) for term, lead in newest.items()}
    led, anchors = reader.places(newest, nothing)
    np.maximum(led, np.float32(_OLDER) * reader.places(older, nothing)[0], out=led)
    led = np.minimum(np.float32(_AHEAD) * led, np.float32(_AT_MOST))
    # Each name has several places, so these come before what stands beside them.
    lent = np.float32(_BESIDE) * led
    known = reader.asked | {part for term in (*newest, *older) for part in term}
    return reader.follow(spread(led, lent, lent), _followed(led), anchors, known, LOOKS - 1)


def _gathered(leads: Iterable[tuple[Terms, Lead]]) -> dict[Terms, Lead]:
    gathered: dict[Terms, Lead] = {}
    for term, lead in leads:
        gathered[term] = lead.joined(gathered.get(term, lead))
    return gathered


def _followed(led: npt.NDArray[np.float32]) -> dict[int, float]:
    """The blocks that are read in turn, of utilities [blocks] of where terms led, and what each is worth."""
    return {block: min(1.0, float(led[block]) / _WORTH) for block in apart(led, _FOLLOWED, _RARE)}


class _Reader:
    """Reads sentences of the history, and finds what they name. ``asked``: the terms of the question."""

    def __init__(self, history: History, query: Query, lens: LexicalLens) -> None:
        self._tokens, self._lens = history.tokens, lens
        self._text = NamedText(history, query, lens)
        self.asked = self._text.asked

    def follow(
        self, utility: npt.NDArray[np.float32], found: dict[int, float], anchors: set[int], known: set[int], looks: int
    ) -> npt.NDArray[np.float32]:
        """``utility`` raised where the blocks ``found`` lead, read where they have ``anchors``, and what these lead to.

        found: what each is worth, in (0, 1]. known: terms that lead nowhere new.
        """
        seen = np.zeros(len(utility), dtype=np.bool_)
        raised = utility.copy()
        for _ in range(looks):
            for block in found:
                seen[max(0, block - 1) : block + 2] = True
            # Where it leads is worth no more than what it started from.
            named = _gathered(
                (term, lead._replace(worth=worth))
                for block, worth in found.items()
                for term, lead in self.named(block, anchors, known)
            )
            led, anchors = self.places(named, seen)
            if not anchors:
                break
            known = known | {part for term in named for part in term}
            lent = np.float32(INHERIT) * led
            np.maximum(raised, spread(led, lent, lent), out=raised)
            found = _followed(led)
        return raised

    def named(self, block: int, anchors: set[int], known: set[int]) -> Iterator[tuple[Terms, Lead]]:
        """New terms in the sentences of a block that hold one of ``anchors``."""
        low, high = max(0, block * BLOCK - _OVERHANG), min((block + 1) * BLOCK + _OVERHANG, len(self._text))
        hits = low + np.flatnonzero(np.isin(self._text.evidence(np.arange(low, high)), list(anchors)))
        for start, stop in {self._sentence(hit) for hit in hits.tolist()}:
            yield from self._named(self._text.evidence(np.arange(start, stop)), start, known)

    def named_in_answer(self, start: int, stop: int) -> Iterator[tuple[Terms, Lead]]:
        """The same of the tokens ``[start, stop)``, which ask: what is new in them beside the question."""
        return self._named(self._text.said(start, stop), start, self.asked)

    def _named(self, terms: npt.NDArray[np.int32], start: int, known: set[int]) -> Iterator[tuple[Terms, Lead]]:
        words, stop = terms.tolist(), start + len(terms)
        capitals = self._lens.capitals(self._tokens[start:stop])
        # Any word is written so where a sentence begins.
        names = capitals & ~np.append(True, self._lens.ends(self._tokens[start:stop])[:-1])[: len(capitals)]
        # Of a number each digit is a token: any other number has some of them.
        letters = self._lens.letters(self._tokens[start:stop])
        for word, after, name, reads in zip(words, [*words, -1][1:], names.tolist(), letters.tolist(), strict=True):
            if reads and word >= 0 and word not in known:
                yield (word,), Lead(name)
                if after >= 0 and after not in known:
                    yield (word, after), Lead(name)

    def _sentence(self, hit: int) -> tuple[int, int]:
        low, high = max(0, hit - _REACH), min(hit + _REACH, len(self._tokens))
        ended = low + np.flatnonzero(self._lens.ends(self._tokens[low:high]))
        before, after = ended[ended < hit], ended[ended >= hit]
        return int(before[-1]) + 1 if len(before) else low, int(after[0]) + 1 if len(after) else high

    def places(
        self, named: Mapping[Terms, Lead], seen: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], set[int]]:
        """Utility [blocks] of where ``named`` terms stand besides the blocks ``seen``, and which of them do."""
        by_name, by_word = np.zeros((2, len(seen)), dtype=np.float32)
        used: set[int] = set()
        if not named:
            return by_name, used
        count = self._text.counts()
        # More than this cannot stand in so few blocks; of two that stand side by side, one has to be rare enough.
        already = int(seen.sum())
        named = {
            term: lead
            for term, lead in named.items()
            if min(count[part] for part in term) <= BLOCK * (lead.most + already)
        }
        # A pair is looked up by its rarer part.
        rarer = {term: min(range(len(term)), key=lambda i: (count[term[i]], i)) for term in named}
        at = self._text.places({term[place] for term, place in rarer.items()})
        first = self._text.evidence(at)
        for term, place in rarer.items():
            where = at[first == term[place]] - place
            if len(term) == 2:
                where = where[(where >= 0) & (where + 1 < len(self._text))]
                beside = self._text.evidence(where) == term[0], self._text.evidence(where + 1) == term[1]
                where = where[np.logical_and(*beside)]
            blocks = np.unique(where // BLOCK)
            elsewhere = blocks[blocks < len(seen)]
            elsewhere = elsewhere[~seen[elsewhere]]
            lead = named[term]
            if 0 < len(elsewhere) <= lead.most:
                utility = by_name if lead.name else by_word
                worth = np.float32(_WORTH * lead.worth) / np.sqrt(np.float32(len(elsewhere)))
                utility[elsewhere] = np.maximum(utility[elsewhere], worth)
                used |= set(term)
        # The surer a name leads on, the less a mere word is worth beside it.
        by_word *= np.float32(1 - (1 - _BESIDE_NAME) * min(1.0, float(by_name.max(initial=0)) / _WORTH))
        return np.maximum(by_name, by_word), used
