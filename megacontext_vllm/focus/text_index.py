"""What the lenses look up in a text whatever is asked, worked out once for its next question.

A question has a dozen words, and stands behind a text that another one was asked about a moment ago. Without an index
each question goes through all of the text; with one, through the places that its words have. In memory only: a text is
indexed in about the time that it takes to go through it twice, so that nothing of it has to survive a restart.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.inverted import Inverted, count
from megacontext_vllm.focus.spelling import Spelling, look_up
from megacontext_vllm.tree.nodes import BLOCK


@dataclass(frozen=True)
class Numbered:
    """A number of each token of a text, and where each number stands.

    numbers  int32 ``[N]``, -1 for what is none.
    """

    numbers: npt.NDArray[np.int32]
    inverted: Inverted

    @staticmethod
    def of(numbers: npt.NDArray[np.int32], size: int) -> "Numbered":
        return Numbered(numbers, Inverted(numbers, size))


class BlockIndex:
    """Which numbers each block of 32 tokens has, once each; places are blocks.

    numbers  int32 ``[N]`` of the tokens, -1 for none. counts: int64 ``[size]``, how many tokens have each.
    """

    def __init__(self, numbers: npt.NDArray[np.int32], size: int) -> None:
        self.numbers, self.counts = numbers, count(numbers, size)[1:]
        in_block = np.sort(np.pad(numbers, (0, -len(numbers) % BLOCK), constant_values=-1).reshape(-1, BLOCK), axis=1)
        in_block[:, 1:][in_block[:, 1:] == in_block[:, :-1]] = -1
        self.blocks = Inverted(in_block.reshape(-1), size, step=BLOCK)


class SpelledIndex:
    """Where each token of a text stands, and each word of letters that is several of them."""

    def __init__(self, spelling: Spelling, tokens: npt.NDArray[np.uint32]) -> None:
        """tokens: uint32 ``[N]``; no word goes on behind them."""
        size = len(spelling.vocabulary) + 1  # ids beyond the vocabulary count as one
        self._spelling, self._read = spelling, tokens
        self.joined = spelling.joined(tokens)
        """Its words of several tokens."""
        self._tokens = Inverted(np.minimum(tokens, size - 1), size)
        self._in_word = np.zeros(len(tokens), dtype=np.bool_)
        self._in_word[self.joined.parts] = True
        self._hashes, which = np.unique(spelling.plain(self.joined, tokens), return_inverse=True)
        self._words = Numbered.of(which.astype(np.int32), len(self._hashes))

    def labelled(self, labels: npt.NDArray[np.int16]) -> npt.NDArray[np.intp]:
        """Where the tokens stand whose ``labels``, int16 ``[V + 1]``, are not negative; ascending."""
        return self._tokens.places(np.flatnonzero(labels >= 0))

    def words(self, keys: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int16]]:
        """Where words begin whose hashes are ``keys`` [≥ 1], sorted, none of them 0; ascending, and which each is."""
        which = self._spelling.numbered(keys)
        alone = self.labelled(which)
        alone = alone[~self._in_word[alone]]
        of_alone = which.take(self._read[alone], mode="clip")
        known = look_up(self._hashes, keys)
        joined = self._words.inverted.places(known[known >= 0])
        of_joined = look_up(keys, self._hashes[self._words.numbers[joined]])
        found = np.concatenate([alone, self.joined.begin[joined]])
        order = np.argsort(found)
        return found[order], np.concatenate([of_alone, of_joined.astype(np.int16)])[order]


@dataclass(frozen=True)
class TextIndex:
    """Of the first tokens of a prompt, at least one.

    tokens   uint32 ``[N]``: what is indexed.
    spelled  tokens and words. named: the terms of ``LexicalLens.named``, and ``names``, the hashes that it numbered.
    rows     the words of LensNet; None without it.
    digest   16 bytes, of ``tokens``.
    """

    tokens: npt.NDArray[np.uint32]
    spelled: SpelledIndex
    named: Numbered
    names: npt.NDArray[np.uint64]
    rows: BlockIndex | None
    digest: bytes
