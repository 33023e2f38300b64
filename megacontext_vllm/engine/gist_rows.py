"""The scheduler's view of the gist pool: which gist of which tree lies in which row on the device."""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

import numpy as np

from megacontext_vllm.engine.step_work import GistFill
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.tree.nodes import BLOCK

Gist = tuple[str, int]
"""The file of a tree's level, which no other tree shares, and the gist's index in it."""


def pages_needed(max_batched_tokens: int) -> int:
    """How many pages of 32 rows one step can show at most, twice: what the step before shows is not given away."""
    return -(-2 * max_batched_tokens // BLOCK)


def default_pages(max_batched_tokens: int) -> int:
    """As many again as are needed: what was shown lately, for the next question about it."""
    return 2 * pages_needed(max_batched_tokens)


def check_pool_size(pages: int, needed: int, page_bytes: int) -> None:
    """Raise ConfigError, with the bytes needed, if the pool cannot hold what two steps can ask for."""
    if pages < needed:
        raise ConfigError(
            f"megacontext.gist_pool_pages={pages} is too small: two steps can need {needed} pages "
            f"({needed * page_bytes:,} bytes). Raise it to at least {needed}, leave it unset, or lower "
            "--max-num-batched-tokens."
        )


class GistRows:
    """A table of rows with least-recently-used replacement.

    The rows of the step being built are pinned, and those of the step before: the device may still be reading them
    while the fills of this one are copied. Rows, and not pages of siblings: a Working Context of a thousand gists has
    some of most groups that it touches, and a pool that holds the rest of each is many times as large.
    """

    def __init__(self, pages: int) -> None:
        self._free = list(range(pages * BLOCK - 1, -1, -1))
        self._resident: OrderedDict[Gist, int] = OrderedDict()
        self._before: dict[Gist, None] = {}
        self._forgotten: list[int] = []

    @property
    def resident(self) -> int:
        return len(self._resident)

    def place(self, wanted: Iterable[tuple[str, int, int]]) -> tuple[list[int], list[GistFill]]:
        """Make gists resident for one step. To be called once in each step that shows any.

        ``wanted``: (gist file, index, gists known to be committed in that file) per position. Returns the pool row of
        each, and the fills that the workers must do before the forward pass.
        """
        gists = []
        for path, index, committed in wanted:
            assert index < committed, "a gist is shown before its row is committed"
            gists.append((path, index))
        needed = dict.fromkeys(gists)
        missing = []
        for gist in needed:
            if gist in self._resident:
                self._resident.move_to_end(gist)
            else:
                missing.append(gist)
        self._make_room(len(missing), needed)
        for gist in missing:
            self._resident[gist] = self._free.pop()
        self._before = needed
        # This step has its rows, so from the next one on these may be given away.
        self._free.extend(self._forgotten)
        self._forgotten = []
        return [self._resident[gist] for gist in gists], self._fills(missing)

    def forget(self, folder: str) -> None:
        """Gists of the tree in ``folder`` are made again: they are to be filled anew before they are shown."""
        for gist in [gist for gist in self._resident if gist[0].startswith(f"{folder}/")]:
            # What the step before shows the device may still be reading.
            (self._forgotten if gist in self._before else self._free).append(self._resident.pop(gist))

    def _fills(self, missing: list[Gist]) -> list[GistFill]:
        """One of each file."""
        fills = []
        for path, group in groupby(sorted(missing), key=itemgetter(0)):
            gists = list(group)
            indexes = np.array([index for _, index in gists], np.int64)
            fills.append(GistFill(path, indexes, np.array([self._resident[gist] for gist in gists], np.int64)))
        return fills

    def _make_room(self, count: int, needed: dict[Gist, None]) -> None:
        victims: list[Gist] = []
        for gist in self._resident:
            if len(self._free) + len(victims) >= count:
                break
            if gist not in needed and gist not in self._before:
                victims.append(gist)
        self._free.extend(self._resident.pop(gist) for gist in victims)
        assert len(self._free) >= count, "two steps need more rows than the pool was checked for"

