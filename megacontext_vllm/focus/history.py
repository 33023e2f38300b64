"""The tokens of a prompt as the lenses look at them: what begins it may be indexed, and the rest is looked through.

Whether there is an index, and of how much, changes nothing of what is found.
"""

from functools import cached_property

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Joined, Spelling
from megacontext_vllm.focus.text_index import TextIndex
from megacontext_vllm.tree.nodes import BLOCK


class History:
    """Places are token positions of the prompt, in its full blocks. Threads may share it."""

    def __init__(self, tokens: npt.NDArray[np.uint32], spelling: Spelling, index: TextIndex | None = None) -> None:
        """tokens: uint32 ``[N]``, of which ``index`` has the first, no more than the full blocks."""
        self.tokens, self.spelling, self.index = tokens, spelling, index
        self.blocks = len(tokens) // BLOCK
        self.cut = 0 if index is None else len(index.tokens)
        """Tokens that are indexed."""
        self.rest = tokens[self.cut : self.blocks * BLOCK]
        """uint32: what is not, of the full blocks."""
        assert self.cut <= self.blocks * BLOCK

    @cached_property
    def joined(self) -> Joined:
        """The words of several tokens in ``rest``."""
        return self.spelling.joined(self.rest)

    def labelled(
        self, labels: npt.NDArray[np.int16], query: Query
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int16]]:
        """Where the tokens stand whose ``labels``, int16 ``[V + 1]``, are not negative, ascending, and these labels.

        What ``query`` blanks is left out.
        """
        found = np.flatnonzero(labels.take(self.rest, mode="clip") >= 0) + self.cut
        if self.index is not None:
            found = np.concatenate([self.index.spelled.labelled(labels), found])
        found = found[query.outside(found)]
        return found, labels.take(self.tokens[found], mode="clip")

    def words(
        self, keys: npt.NDArray[np.uint64], query: Query
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int16]]:
        """Where words begin whose hashes are ``keys``, sorted, ascending, and which each is. As ``labelled``."""
        if not len(keys):
            return np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.int16)
        dense = self.spelling.places(self.rest, keys, self.joined)
        found = np.flatnonzero(dense >= 0)
        which = dense[found]
        found += self.cut
        if self.index is not None:
            front, of_front = self.index.spelled.words(keys)
            found, which = np.concatenate([front, found]), np.concatenate([of_front, which])
        kept = query.outside(found)
        return found[kept], which[kept]
