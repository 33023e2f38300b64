"""The terms of a whole prompt, names as one term each: read sentence by sentence, and looked up."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.inverted import count
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.query import Query


class NamedText:
    """Terms are those of ``LexicalLens.named``. ``asked``: those of what is asked."""

    def __init__(self, history: History, query: Query, lens: LexicalLens) -> None:
        index = history.index
        self._front = None if index is None else index.named
        self._cut, self._query = history.cut, query
        # What is asked is read with the rest, so that its names have the same numbers.
        rest = history.tokens[self._cut :]
        read, _ = lens.named(
            np.concatenate([rest, query.terms.astype(np.uint32)]), None if index is None else index.names
        )
        self._rest, asked = np.split(read, [len(rest)])
        self.asked = set(asked.tolist()) - {-1}
        self._evidence = self._rest.copy()
        query.blank(self._evidence, self._cut)
        self._size = max(int(read.max(initial=-1)) + 1, 0 if self._front is None else len(self._front.inverted.counts))

    def __len__(self) -> int:
        return self._cut + len(self._rest)

    def said(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """The terms of the tokens ``[start, stop)``, -1 for what is none."""
        front = [] if self._front is None else [self._front.numbers[start:stop]]
        rest = self._rest[max(0, start - self._cut) : max(0, stop - self._cut)]
        return np.concatenate([*front, rest])

    def evidence(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
        """The terms of ``places``, ascending; -1 for what is none, and for what asks."""
        front = int(np.searchsorted(places, self._cut))
        terms = self._evidence[places[front:] - self._cut]
        if self._front is not None:
            terms = np.concatenate([self._front.numbers[places[:front]], terms])
            terms[~self._query.outside(places)] = -1
        return terms

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each term stands as evidence, by its number."""
        counts = count(self._evidence, self._size)[1:]
        if self._front is not None:
            asking = self._front.numbers[self._query.within(self._cut)]
            counts -= count(asking, self._size)[1:]
            counts[: len(self._front.inverted.counts)] += self._front.inverted.counts
        return counts

    def places(self, terms: Collection[int]) -> npt.NDArray[np.intp]:
        """Where ``terms`` (distinct) stand as evidence, ascending."""
        wanted = np.zeros(self._size + 1, dtype=np.bool_)  # the last one is for -1
        wanted[list(terms)] = True
        found = self._cut + np.flatnonzero(wanted[self._evidence])
        if self._front is not None:
            front = self._front.inverted.places(np.flatnonzero(wanted[: len(self._front.inverted.counts)]))
            found = np.concatenate([front[self._query.outside(front)], found])
        return found
