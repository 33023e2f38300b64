"""Words of a history as numbers, whatever the tokens: a word is a run of letters, and may be several tokens.

Where a word begins depends on the tokens beside it, and one word is spelled in several ways (``" glass" "blowing"``,
``"Gl" "ass" "blowing"``). So a word is known by a hash of its letters in lower case, which is put together from its
tokens' hashes: a million tokens take a few passes of numpy and no text is ever joined.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LONGEST = 64  # bytes; a longer run of letters is no word
_BASE = 0x100000001B3  # odd, so that no power of it vanishes modulo 2^64
_POWER = [pow(_BASE, i, 1 << 64) for i in range(LONGEST + 1)]
_POWERS = np.array(_POWER, dtype=np.uint64)
_LETTERS = re.compile(r"[^\W\d_]+")


def word_hash(word: str) -> int:
    """Of a word in lower case, never 0: polynomial, lowest power first, so that parts add up, each times a power.

    0 for what is too long to be a word.
    """
    letters = word.encode("utf-8", "surrogatepass")
    if len(letters) > LONGEST:
        return 0
    return sum((byte + 1) * power for byte, power in zip(letters, _POWER)) % (1 << 64)


@dataclass(frozen=True)
class Joined:
    """The words of a text that are several tokens.

    parts   intp ``[parts]``, ascending: all tokens of such words.
    heads   intp ``[words]``, ascending: which of ``parts`` begin one.
    begin   intp ``[words]``, ascending: where they begin. hashes: uint64 ``[words]``, 0 for what is too long.
    """

    parts: npt.NDArray[np.intp]
    heads: npt.NDArray[np.intp]
    begin: npt.NDArray[np.intp]
    hashes: npt.NDArray[np.uint64]


class Spelling:
    """How a tokenizer writes words. Immutable, so threads may share it."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        """vocabulary: the text of each token id, e.g. ``" code"``."""
        self.vocabulary = vocabulary
        # One more entry than there are tokens: ids beyond the vocabulary clip to it, and it is no letter.
        size = len(vocabulary) + 1
        self._goes_on, self._open = np.zeros((2, size), dtype=np.bool_)
        self._bytes = np.zeros(size, dtype=np.int64)
        self.alone = np.zeros(size, dtype=np.uint64)
        """uint64 [V + 1]: the hash of the word that a token is by itself, of the last if there are several; else 0."""
        self.in_one_token = np.zeros(size, dtype=np.uint64)
        """The same, 0 for tokens of several words or with digits."""
        for token, text in enumerate(vocabulary):
            if text:
                self._goes_on[token], self._open[token] = text[0].isalpha(), text[-1].isalpha()
            runs = _LETTERS.findall(text.casefold())
            if runs:
                self._bytes[token] = len(runs[-1].encode("utf-8", "surrogatepass"))
                self.alone[token] = word_hash(runs[-1])
                if sum(map(str.isalnum, text.casefold())) == len(runs[-1]):
                    self.in_one_token[token] = self.alone[token]
        self._by_hash = np.argsort(self.in_one_token, kind="stable")
        self._hashes = self.in_one_token[self._by_hash]

    def text(self, tokens: npt.NDArray[Any]) -> str:
        """The text of ``tokens`` [n], of a word without the space in front; ids beyond the vocabulary have none."""
        known = len(self.vocabulary)
        return "".join(self.vocabulary[token] for token in tokens.tolist() if token < known).lstrip()

    def words(self, tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """The hash of the word that begins in each of ``tokens`` [N]; 0 where none does, or one with digits."""
        joined = self.joined(tokens)
        hashes = self.in_one_token.take(tokens, mode="clip")
        hashes[joined.parts] = 0
        hashes[joined.begin] = self.plain(joined, tokens)
        return hashes

    def places(
        self, tokens: npt.NDArray[Any], keys: npt.NDArray[np.uint64], joined: Joined | None = None
    ) -> npt.NDArray[np.int16]:
        """Which of the hashes ``keys`` [≥ 1], sorted, the word has that begins in each of ``tokens``; -1 for none.

        joined  what ``joined`` makes of ``tokens``, if that is known.

        The same as to look ``words`` up, for a history: what is looked up is the vocabulary and the joined words.
        """
        joined = joined or self.joined(tokens)
        which = self.numbered(keys).take(tokens, mode="clip")
        which[joined.parts] = -1
        which[joined.begin] = look_up(keys, self.plain(joined, tokens))
        return which

    def numbered(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int16]:
        """Which of the hashes ``keys``, sorted, none 0, the word has that each token is: int16 [V + 1], -1 for none."""
        which = np.full(len(self.in_one_token), -1, dtype=np.int16)
        ends = np.searchsorted(self._hashes, keys), np.searchsorted(self._hashes, keys, side="right")
        for number, (start, stop) in enumerate(zip(*(end.tolist() for end in ends), strict=True)):
            which[self._by_hash[start:stop]] = number
        return which

    def boundary(self, tokens: npt.NDArray[Any], before: int) -> int:
        """The last place in ``tokens`` [N], no more than ``before``, that no word goes over; N is one."""
        assert before <= len(tokens)
        opens, goes_on = self._open, self._goes_on
        while 0 < before < len(tokens):
            if not (opens.take(tokens[before - 1], mode="clip") and goes_on.take(tokens[before], mode="clip")):
                break
            before -= 1
        return before

    def plain(self, joined: Joined, tokens: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
        """uint64 ``[words]``: the hashes of the words ``joined`` of ``tokens``, 0 for those with more than letters."""
        if not len(joined.begin):
            return joined.hashes
        plain = self.in_one_token.take(tokens[joined.parts], mode="clip") != 0
        return np.where(np.logical_and.reduceat(plain, joined.heads), joined.hashes, np.uint64(0))

    def joined(self, tokens: npt.NDArray[Any]) -> Joined:
        """The words of ``tokens``, integers [N], that are more than one of them."""
        goes_on = np.zeros(len(tokens) + 1, dtype=np.bool_)  # whether a token goes on with the word of the one before
        goes_on[1:-1] = self._goes_on.take(tokens[1:], mode="clip") & self._open.take(tokens[:-1], mode="clip")
        parts = np.flatnonzero(goes_on[:-1] | goes_on[1:])
        if not len(parts):
            return Joined(parts, parts, parts, np.zeros(0, dtype=np.uint64))
        heads = np.flatnonzero(~goes_on[parts])
        part = tokens[parts]
        width = self._bytes.take(part, mode="clip")
        before = np.cumsum(width) - width
        offset = before - np.repeat(before[heads], np.diff(np.append(heads, len(parts))))
        shift = _POWERS[np.minimum(offset, LONGEST)]
        hashes = np.add.reduceat(self.alone.take(part, mode="clip") * shift, heads)
        hashes[np.add.reduceat(width, heads) > LONGEST] = 0
        return Joined(parts, heads, parts[heads], hashes)


def look_up(keys: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Which of ``keys``, sorted, each of ``wanted`` [n] is; -1 for none. int32 of the same shape."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.int32)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, at, -1).astype(np.int32)
