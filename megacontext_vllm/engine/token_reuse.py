"""Tokenise only what is new: a client resends its whole history, and most of it was tokenised a moment ago.

Tokenising is the one cost in front of the engine that grows with the history (about 0.2 s per 100,000 tokens). Text is
cut behind a newline some way before it departs from a known text, tokenised from there, and joined to the known tokens.
Tokenizers split text by local rules, so a stretch of equal tokens on both sides of the cut shows that the join is what
tokenising the whole would give; without that stretch the whole is tokenised.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Text -> token ids and the character at which each token starts.
Tokenize = Callable[[str], tuple[list[int], npt.NDArray[np.int64]]]

LONG = 32_768  # characters; shorter texts are tokenised in milliseconds
GUARD = 2_048  # characters before the departure that are tokenised again
AGREE = 64  # tokens behind the cut that must come out as they are known
CUTS_TRIED = 16


@dataclass(frozen=True)
class _Known:
    text: str
    ids: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]


class TokenReuse:
    """Known texts of a front end, least recently used out first.

    Texts of one namespace are never looked at for another: how long tokenising takes would tell what others sent.
    """

    def __init__(self, max_characters: int = 32_000_000) -> None:
        self._max_characters = max_characters
        self._known: OrderedDict[tuple[str | None, int], _Known] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    def encode(self, namespace: str | None, text: str, tokenize: Tokenize) -> list[int]:
        """Token ids of ``text``, the same as ``tokenize(text)[0]``."""
        if len(text) < LONG:
            return tokenize(text)[0]
        key, known, common = self._longest(namespace, text)
        joined = self._join(known, common, text, tokenize) if known is not None else None
        if joined is None:
            ids, starts = tokenize(text)
            joined = _Known(text, np.array(ids, dtype=np.int64), starts)
        # A text that goes on where the known one ended takes its place; one that departs is kept beside it.
        self._remember(namespace, joined, replaces=key if known is not None and common == len(known.text) else None)
        return joined.ids.tolist()

    def _longest(self, namespace: str | None, text: str) -> tuple[tuple[str | None, int] | None, _Known | None, int]:
        with self._lock:
            candidates = [(key, known) for key, known in self._known.items() if key[0] == namespace]
        best: tuple[tuple[str | None, int] | None, _Known | None, int] = (None, None, 0)
        for key, known in candidates:
            if known.text[:LONG] == text[:LONG]:
                common = _common_length(known.text, text)
                if common > best[2]:
                    best = (key, known, common)
        return best

    def _join(self, known: _Known, common: int, text: str, tokenize: Tokenize) -> _Known | None:
        end = common - GUARD
        for _ in range(CUTS_TRIED):
            end = text.rfind("\n", 0, end)
            cut = end + 1
            if end < 0:
                return None
            first = int(np.searchsorted(known.starts, cut))
            clean = not text[cut].isspace() and first + AGREE < len(known.starts)
            if clean and known.starts[first] == cut and known.starts[first + AGREE] < common:
                break
        else:
            return None
        ids, starts = tokenize(text[cut:])
        new = np.array(ids, dtype=np.int64)
        if not np.array_equal(new[:AGREE], known.ids[first : first + AGREE]):
            return None
        return _Known(
            text,
            np.concatenate([known.ids[:first], new]),
            np.concatenate([known.starts[:first], starts + cut]),
        )

    def _remember(self, namespace: str | None, known: _Known, replaces: tuple[str | None, int] | None) -> None:
        with self._lock:
            if replaces is not None:
                self._known.pop(replaces, None)
            self._number += 1
            self._known[namespace, self._number] = known
            while sum(len(entry.text) for entry in self._known.values()) > self._max_characters:
                self._known.popitem(last=False)


def _common_length(first: str, second: str) -> int:
    """Length of the longest common prefix, by halving: comparing slices runs at the speed of memory."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
