"""The Working Context: what the frozen model sees of a history, as an ordered list of entries.

It is a plan, not data: entries name spans of the timeline, and the engine turns them into token ids and gist rows. Its
invariants (budget, contiguity, alignment) are the contract between the Focus Allocator, which makes it, and the engine,
which prefills it; they are checked on construction, so a Working Context that exists is a valid one.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from megacontext_vllm.tree.nodes import BLOCK


class Kind(Enum):
    """How an entry shows its span."""

    RAW = auto()
    GIST = auto()
    GAP = auto()


class Entry(NamedTuple):  # a large window has thousands; frozen dataclasses take four times as long to make
    """One entry; it shows tokens ``[start, end)`` of the history.

    kind    RAW: a whole block as 32 raw tokens, or the unfinished tail (fewer tokens). GIST: one embedding for node
            ``(level, index)``. GAP: a hidden run of whole blocks behind one marker.
    level   level of the node; 1 for RAW and GAP.
    index   index of the node; of the first block for GAP.
    cost    entries of the window it uses: tokens for RAW, 1 for GIST, marker tokens for GAP.
    reason  why it is there: ``head``/``tail`` pinned, or ``pinned`` in between, ``lens`` chosen by utility, ``recent``
            from leftover budget, ``cover`` a gist that only keeps the timeline whole, ``gap``.
    score   the highest utility of the blocks it covers.
    """

    kind: Kind
    level: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody asks an entry for
    start: int
    end: int
    cost: int
    reason: str
    score: float


@dataclass(frozen=True, slots=True)
class WorkingContext:
    """Entries that tile ``[0, length)`` in order and cost at most ``window``."""

    entries: tuple[Entry, ...]
    length: int
    window: int

    def __post_init__(self) -> None:
        self.check()

    @property
    def cost(self) -> int:
        """Entries of the window in use."""
        return sum(entry.cost for entry in self.entries)

    def check(self) -> None:
        """Assert every invariant; an ``AssertionError`` here is a bug of whoever made this object."""
        assert self.cost <= self.window, f"budget: cost {self.cost} > window {self.window}"
        position = 0
        previous: Kind | None = None
        for entry in self.entries:
            kind, level, index, start, end, cost, _, _ = entry
            assert start == position < end, f"contiguity: {entry} should start at {position}"
            if kind is Kind.GIST:
                assert level >= 1, f"a gist stands for at least a block: {entry}"
                width = BLOCK**level
                assert start == index * width and end == start + width, f"alignment: {entry}"
                assert end <= self.length, f"no such node: {entry}"
                assert cost == 1, f"a gist costs 1: {entry}"
            else:
                assert level == 1 and start == index * BLOCK, f"alignment: {entry}"
                assert end % BLOCK == 0 or (end == self.length and kind is Kind.RAW), f"alignment: {entry}"
                if kind is Kind.RAW:
                    assert cost == end - start <= BLOCK, f"a raw entry is one block: {entry}"
                else:
                    assert cost >= 0, f"negative cost: {entry}"
                    assert previous is not Kind.GAP, f"two gaps side by side: {entry}"
            position, previous = end, kind
        assert position == self.length, f"contiguity: entries end at {position}, the history at {self.length}"
