"""The part of the tree that a choice is made in: the complete nodes between the pinned head and tail.

Both ends are pinned, so the nodes of a level that may be shown or expanded are one range: nothing here takes room for
every node.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Forest:
    """The complete nodes inside the blocks ``[first, stop)`` of a tree with ``branching`` children per node.

    inside[i]    the nodes of level i + 1 that cover blocks of ``[first, stop)`` only.
    """

    branching: int
    inside: tuple[range, ...]

    @staticmethod
    def over(num_blocks: int, first: int, stop: int, branching: int) -> "Forest":
        """Forest of the first ``num_blocks`` blocks; levels exist as far as complete nodes do."""
        assert 0 <= first <= stop <= num_blocks
        assert branching >= 2
        inside = []
        size = 1
        while num_blocks // size:
            start = -(-first // size)
            inside.append(range(start, max(start, stop // size)))
            size *= branching
        return Forest(branching, tuple(inside))

    def below(self, i: int) -> range:
        """The children (of level i + 1) of the nodes inside on level i + 2; they are inside, too."""
        if i + 1 == len(self.inside):
            return range(self.inside[i].start, self.inside[i].start)
        parents = self.inside[i + 1]
        return range(parents.start * self.branching, parents.stop * self.branching)

    def families(self, i: int, nodes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[nodes inside on level i + 1] -> [nodes inside on level i + 2, children]: a view."""
        start, below = self.inside[i].start, self.below(i)
        return nodes[below.start - start : below.stop - start].reshape(-1, self.branching)

    def roots(self, i: int) -> Indices:
        """The nodes of level i + 1 that no other node inside hides, ascending: those on display if none is expanded."""
        inside, below = self.inside[i], self.below(i)
        if not below:
            return np.arange(inside.start, inside.stop)
        return np.concatenate([np.arange(inside.start, below.start), np.arange(below.stop, inside.stop)])

    def frontier(self, expanded: Sequence[Collection[int]]) -> list[Indices]:
        """Per level, ascending, the nodes on display as gists: not expanded, below nothing but expanded nodes.

        expanded  per level, the nodes that are not on display any more; closed under parents inside.
        """
        shown = []
        for i in range(len(self.inside)):
            nodes = self.roots(i)
            if i + 1 < len(self.inside) and expanded[i + 1]:
                parents = np.fromiter(expanded[i + 1], dtype=np.intp, count=len(expanded[i + 1]))
                children = parents[:, None] * self.branching + np.arange(self.branching)
                nodes = np.concatenate([nodes, children.reshape(-1)])
            nodes.sort()
            gone = np.fromiter(expanded[i], dtype=np.intp, count=len(expanded[i]))
            shown.append(np.delete(nodes, np.searchsorted(nodes, gone)))
        return shown

    def nothing(self) -> list[set[int]]:
        """The coarsest state: no node expanded."""
        return [set() for _ in self.inside]
