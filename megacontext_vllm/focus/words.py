"""Tokens to words: which row of a table of words each word of a history is, for any tokenizer."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.spelling import Joined, Spelling, word_hash


class Words:
    """The words of a table, as a tokenizer writes them. One for both; immutable, so threads may share it."""

    def __init__(self, spelling: Spelling, rows: Mapping[str, int]) -> None:
        """rows: the row of each word, in lower case."""
        known = {key: row for word, row in rows.items() if (key := word_hash(word))}
        self._spelling = spelling
        self._hashes = np.array(sorted(known), dtype=np.uint64)
        self._rows = np.array([known[key] for key in self._hashes.tolist()], dtype=np.int32)
        self._alone = self._look_up(spelling.alone)

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

    def _look_up(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int32]:
        if not len(self._hashes):
            return np.full(len(hashes), -1, dtype=np.int32)
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self._hashes)] = 0
        found: npt.NDArray[np.int32] = np.where(self._hashes[at] == hashes, self._rows[at], np.int32(-1))
        return found
