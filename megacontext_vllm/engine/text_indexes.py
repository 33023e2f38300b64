"""Indexes of the texts that were asked about last, for the next question about one of them.

A document that is asked about again, a chat that goes on and an answer under way begin with what was indexed before.
"""

import numpy as np
import numpy.typing as npt

from megacontext_vllm.engine.remembered import Remembered
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.text_index import TextIndex
from megacontext_vllm.tree.nodes import BLOCK

LONG = 65_536  # tokens; a shorter prompt is looked through in some milliseconds
BYTES_PER_TOKEN = 25  # of an index, about
_END = 4_096  # tokens of a prompt that are not indexed: its question is another one next time
_OF_ITS_OWN = 100_000  # tokens that as much memory would hold as an index takes whatever its length
_GROWN = 8  # a text that has grown by more than this part of it is indexed anew

Tokens = npt.NDArray[np.uint32]


class TextIndexes:
    """Of the texts that were asked about last. Threads may share it."""

    def __init__(self, focus: Focus, max_tokens: int) -> None:
        """max_tokens: of all of them together; the last one is kept whatever it has."""
        self._focus = focus
        self._known = Remembered[bytes, TextIndex](max_tokens, _size)

    def of(self, namespace: str, prompt: Tokens) -> TextIndex | None:
        """An index of how ``prompt``, uint32 [N], begins, made now if none is known; None for a short one."""
        if len(prompt) < LONG:
            return None
        known = self._longest(namespace, prompt)
        begins = 0 if known is None else len(known.tokens)
        if known is not None and len(prompt) - begins <= max(LONG, begins // _GROWN):
            return known
        # A word does not go over the end of an index. One that goes on for long is no word, and not looked through.
        start = len(prompt) - 2 * _END
        end = start + self._focus.lens.spelling.boundary(prompt[start:], _END)
        if end == start:
            return known
        index = self._focus.index_of(prompt[:end].copy())  # of its own: the prompt's is longer, and would stay
        self._known.put(namespace, index.digest, index, instead=None if known is None else known.digest)
        return index

    def _longest(self, namespace: str, prompt: Tokens) -> TextIndex | None:
        candidates = self._known.of(namespace)
        for digest, index in sorted(candidates, key=lambda known: -len(known[1].tokens)):
            length = len(index.tokens)
            whole = length <= len(prompt) // BLOCK * BLOCK
            # Most others are told by how they begin, and those that have a long system message alike by their ends.
            begins, ends = slice(min(length, _END)), slice(max(length - _END, 0), length)
            alike = whole and all(np.array_equal(index.tokens[at], prompt[at]) for at in (begins, ends))
            # Another prompt may go on with a word where this one's ends.
            alike = alike and self._focus.lens.spelling.boundary(prompt[length - 1 : length + 1], 1) == 1
            if alike and np.array_equal(index.tokens, prompt[:length]):
                self._known.use(namespace, digest)
                return index
        return None


def _size(index: TextIndex) -> int:
    """In tokens: what it takes whatever its length, tables of the vocabulary, is that of 100,000 at most."""
    return len(index.tokens) + _OF_ITS_OWN
