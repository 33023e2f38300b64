"""Tokens to words: which row of a table of words each word of a history is, for any tokenizer.

A word is a run of letters; it may be several tokens, and where one begins depends on the tokens beside it. Words are
looked up by a hash of their letters, so a million tokens take a few passes of numpy and no text is ever joined.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

_LONGEST = 64  # bytes; a longer run of letters is no word
_BASE = 0x100000001B3  # odd, so that no power of it vanishes modulo 2^64
_POWER = [pow(_BASE, i, 1 << 64) for i in range(_LONGEST + 1)]
_POWERS = np.array(_POWER, dtype=np.uint64)
_LETTERS = re.compile(r"[^\W\d_]+")


def _hash(letters: bytes) -> int:
    """Polynomial, lowest power first: the hash of a word is the sum of its parts' hashes, each times a power."""
    return sum((byte + 1) * power for byte, power in zip(letters, _POWER)) % (1 << 64)


class Words:
    """The words of a table, as a tokenizer writes them. One for both; immutable, so threads may share it."""

    def __init__(self, vocabulary: Sequence[str], rows: Mapping[str, int]) -> None:
        """vocabulary: the text of each token id, e.g. ``" code"``. rows: the row of each word, in lower case."""
        known = {_hash(word.encode()): row for word, row in rows.items() if len(word.encode()) <= _LONGEST}
        self._hashes = np.array(sorted(known), dtype=np.uint64)
        self._rows = np.array([known[key] for key in self._hashes.tolist()], dtype=np.int32)
        # One more entry than there are tokens: ids beyond the vocabulary clip to it, and it is no letter.
        size = len(vocabulary) + 1
        self._goes_on, self._open = np.zeros((2, size), dtype=np.bool_)
        self._hash = np.zeros(size, dtype=np.uint64)
        self._bytes = np.zeros(size, dtype=np.int64)
        self._alone = np.full(size, -1, dtype=np.int32)
        for token, text in enumerate(vocabulary):
            if text:
                self._goes_on[token], self._open[token] = text[0].isalpha(), text[-1].isalpha()
            runs = _LETTERS.findall(text.casefold())
            if not runs:
                continue
            letters = runs[-1].encode("utf-8", "surrogatepass")
            self._bytes[token] = len(letters)
            if len(letters) <= _LONGEST:
                self._hash[token] = _hash(letters)
                self._alone[token] = rows.get(runs[-1], -1)

    def rows(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """The row of the word that begins in each token, int32 of the shape ``[N]`` of ``tokens``; -1 where none does.

        A token that holds several words (rare, but for code) stands for the last of them.
        """
        found = self._alone.take(tokens, mode="clip")
        joined = np.zeros(len(tokens) + 1, dtype=np.bool_)  # whether a token goes on with the word of the one before
        joined[1:-1] = self._goes_on.take(tokens[1:], mode="clip") & self._open.take(tokens[:-1], mode="clip")
        parts = np.flatnonzero(joined[:-1] | joined[1:])
        if not len(parts):
            return found
        heads = np.flatnonzero(~joined[parts])
        part = tokens[parts]
        width = self._bytes.take(part, mode="clip")
        before = np.cumsum(width) - width
        lengths = np.diff(np.append(heads, len(parts)))
        offset = before - np.repeat(before[heads], lengths)
        shift = _POWERS[np.minimum(offset, _LONGEST)]
        hashes = np.add.reduceat(self._hash.take(part, mode="clip") * shift, heads)
        whole = np.add.reduceat(width, heads)
        found[parts] = -1
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self._hashes)] = 0
        matches = (self._hashes[at] == hashes) & (whole <= _LONGEST) if len(self._hashes) else at < 0
        found[parts[heads[matches]]] = self._rows[at[matches]]
        return found
