"""The scheduler's view of the gist pool: which page of which tree lies where on the device.

A page holds 32 siblings, which is what expanding their parent shows: a Working Context needs few pages.
"""

from collections import OrderedDict
from collections.abc import Iterable, Set
from dataclasses import dataclass

from megacontext_vllm.engine.step_work import PageFill
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.tree.nodes import BLOCK

MAX_LEVELS = 8


def pages_needed(max_batched_tokens: int, max_requests: int) -> int:
    """How many pages one step can touch at most, twice: those of the step before are not given away either.

    Gists come as what is left of groups of 32 siblings, so ``c`` scheduled entries touch about ``c / 31`` pages, plus
    at most two broken groups per level and request; and never more pages than entries.
    """
    return 2 * min(max_batched_tokens, -(-max_batched_tokens // (BLOCK - 1)) + 2 * MAX_LEVELS * max_requests)


def check_pool_size(pages: int, needed: int, page_bytes: int) -> None:
    """Raise ConfigError, with the bytes needed, if the pool cannot hold what two steps can ask for."""
    if pages < needed:
        raise ConfigError(
            f"megacontext.gist_pool_pages={pages} is too small: two steps can need {needed} pages "
            f"({needed * page_bytes:,} bytes). Raise it to at least {needed}, leave it unset, or lower "
            "--max-num-batched-tokens or --max-num-seqs."
        )


@dataclass(frozen=True, slots=True)
class PageKey:
    """32 siblings of one tree; ``path`` is the file of their level, which no other tree shares."""

    path: str
    index: int


class GistPages:
    """Page table with least-recently-used replacement.

    The pages of the step being built are pinned, and those of the step before: the device may still be reading them
    while the fills of this one are copied.
    """

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages - 1, -1, -1))
        self._resident: OrderedDict[PageKey, tuple[int, int]] = OrderedDict()  # key -> (page, valid rows)
        self._before: set[PageKey] = set()

    @property
    def resident(self) -> int:
        return len(self._resident)

    def place(self, wanted: Iterable[tuple[str, int, int]]) -> tuple[list[int], list[PageFill]]:
        """Make nodes resident for one step.

        ``wanted``: (gist file, node index, rows known to be committed in that file) per gist position.
        Returns the pool row of each and the fills that the workers must do before the forward pass. Pages named in
        one call, or in the call before, are not replaced; the pool is sized so that two steps always fit. To be called
        once a step.
        """
        wanted = list(wanted)
        needed: dict[PageKey, int] = {}
        for path, index, committed in wanted:
            key = PageKey(path, index // BLOCK)
            needed[key] = max(committed, needed.get(key, 0))
        for key in needed:
            if key in self._resident:
                self._resident.move_to_end(key)
        fills = []
        for key, committed in needed.items():
            valid_now = min(committed - key.index * BLOCK, BLOCK)
            page, valid = self._resident.get(key, (-1, 0))
            if page < 0:
                page = self._take(needed.keys() | self._before)
            if valid < valid_now:
                first = key.index * BLOCK
                fills.append(PageFill(key.path, first + valid, first + valid_now, page, valid))
                valid = valid_now
            self._resident[key] = (page, valid)
            self._resident.move_to_end(key)
        self._before = set(needed)
        rows = []
        for path, index, _ in wanted:
            page, valid = self._resident[PageKey(path, index // BLOCK)]
            assert index % BLOCK < valid, "a gist is shown before its row is committed"
            rows.append(page * BLOCK + index % BLOCK)
        return rows, fills

    def forget(self, folder: str) -> None:
        """Gists of the tree in ``folder`` are made again: its pages are to be filled anew before they are shown."""
        for key, (page, _) in self._resident.items():
            if key.path.startswith(f"{folder}/"):
                self._resident[key] = (page, 0)

    def _take(self, pinned: Set[PageKey]) -> int:
        if self._free:
            return self._free.pop()
        for key in self._resident:
            if key not in pinned:
                return self._resident.pop(key)[0]
        raise AssertionError("two steps need more pages than the pool was checked for")
