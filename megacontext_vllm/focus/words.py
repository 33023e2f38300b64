"""Tokens to words: which row of a table of words each word of a history is, for any tokenizer."""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.inverted import count
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Joined, Spelling, look_up, word_hash
from megacontext_vllm.focus.text_index import BlockIndex
from megacontext_vllm.tree.nodes import BLOCK


class Words:
    """The words of a table, as a tokenizer writes them. One for both; immutable, so threads may share it."""

    def __init__(self, spelling: Spelling, rows: Mapping[str, int]) -> None:
        """rows: the row of each word, in lower case."""
        known = {key: row for word, row in rows.items() if (key := word_hash(word))}
        self._spelling = spelling
        self._hashes = np.array(sorted(known), dtype=np.uint64)
        self._rows = np.array([*(known[key] for key in self._hashes.tolist()), -1], dtype=np.int32)
        self._alone = self._look_up(spelling.alone)
        self.number = max(rows.values(), default=-1) + 1
        """Rows of the table."""

    def rows(self, tokens: npt.NDArray[np.uint32], joined: Joined | None = None) -> npt.NDArray[np.int32]:
        """The row of the word that begins in each token, int32 of the shape ``[N]`` of ``tokens``; -1 where none does.

        A token that holds several words (rare, but for code) stands for the last of them.
        ``joined``: what ``Spelling.joined`` makes of ``tokens``, if that is known.
        """
        found = self._alone.take(tokens, mode="clip")
        joined = joined or self._spelling.joined(tokens)
        found[joined.parts] = -1
        found[joined.begin] = self._look_up(joined.hashes)
        return found

    def of(self, history: History, query: Query) -> "Rows":
        """Those of a history, but for where ``query`` asks."""
        front = None if history.index is None else history.index.rows
        assert front is not None or history.index is None, "a text that was indexed without words"
        return Rows(front, self.rows(history.rest, history.joined), query, self.number)

    def _look_up(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        return self._rows[look_up(self._hashes, hashes)]  # the last row is for -1


class Rows:
    """The row of a table of words of each token in the full blocks of a prompt, -1 where no word begins or it asks."""

    def __init__(self, front: BlockIndex | None, rest: npt.NDArray[np.int32], query: Query, number: int) -> None:
        """front: of the first tokens, whatever asks. rest: int32 ``[n]``, of those behind, which is changed."""
        self._front, self._rest, self._query, self._number = front, rest, query, number
        self._cut = 0 if front is None else len(front.numbers)
        query.blank(rest, self._cut)
        self._asking = query.within(self._cut)

    def counts(self) -> npt.NDArray[np.int64]:
        """How often each row stands: int64 ``[rows of the table]``."""
        counts = count(self._rest, self._number)[1:]
        if self._front is not None:
            counts += self._front.counts - count(self._front.numbers[self._asking], self._number)[1:]
        return counts

    def best(self, gains: npt.NDArray[np.float32], blocks: int) -> Iterator[npt.NDArray[np.float32]]:
        """For each of ``gains``, ≥ 0 of each row of the table: the most that each block has of it, float32."""
        fits: npt.NDArray[np.bool_] = np.any(gains, axis=0)
        known = np.flatnonzero((self._rest >= 0) & fits[self._rest])
        rows, block = self._rest[known], (known + self._cut) // BLOCK
        front = self._front
        if front is not None:
            pieces = [
                (wanted, front.blocks.counts[wanted], places)
                for wanted, places in front.blocks.in_pieces(np.flatnonzero(fits))
            ]
            # The index does not know what asks, so that blocks which have a part of it are looked at anew.
            asking = np.unique(self._asking // BLOCK)
            inside = self.around(asking * BLOCK, BLOCK)
        for gain in gains:
            most = np.zeros(blocks, dtype=np.float32)
            if front is not None:
                for wanted, counts, places in pieces:
                    np.maximum.at(most, places, np.repeat(gain[wanted], counts))
                most[asking] = np.where(inside >= 0, gain[inside], 0).max(axis=1, initial=0)
            np.maximum.at(most, block, gain[rows])
            yield most

    def around(self, start: npt.NDArray[np.intp], length: int) -> npt.NDArray[np.int32]:
        """int32 ``[n, length]``: the rows from each of the tokens ``start`` [n] on, -1 beside the full blocks."""
        places = start[:, None] + np.arange(length)
        behind = places - self._cut
        rows = np.full(places.shape, -1, dtype=np.int32)
        known = (behind >= 0) & (behind < len(self._rest))
        rows[known] = self._rest[behind[known]]
        if self._front is not None:
            known = (places >= 0) & (behind < 0)
            rows[known] = self._front.numbers[places[known]]
            for begin, stop in self._query.asking:
                rows[(places >= begin) & (places < stop)] = -1
        return rows
