"""Tokenise only what is new: a client resends its whole history, and most of it was tokenised a moment ago.

Tokenising is the one cost in front of the engine that grows with the history. A known text is the first piece of a text
that begins like it: what is new is tokenised from some way before the departure, and joined as pieces are.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass

from megacontext_vllm.engine.token_pieces import Encoder, Tokens, tokenise
from megacontext_vllm.engine.token_transport import TokenList

LONG = 32_768  # characters; shorter texts are tokenised in milliseconds


@dataclass(frozen=True)
class _Known:
    text: str
    tokens: Tokens


class TokenReuse:
    """Known texts of a front end, least recently used out first.

    Texts of one namespace are never looked at for another: how long tokenising takes would tell what others sent.
    """

    def __init__(self, max_characters: int = 32_000_000) -> None:
        self._max_characters = max_characters
        self._known: OrderedDict[tuple[str | None, int], _Known] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    def tokenise(self, namespace: str | None, text: str, encoder: Encoder) -> list[int]:
        """Token ids of ``text``, the same as ``encoder.encode([text])[0].ids``."""
        if len(text) < LONG:
            return encoder.encode([text])[0].ids
        key, known, common = self._longest(namespace, text)
        tokens = tokenise(text, encoder, known.tokens if known is not None else None, common)
        # A text that goes on where the known one ended takes its place; one that departs is kept beside it.
        replaces = key if known is not None and common == len(known.text) else None
        self._remember(namespace, _Known(text, tokens), replaces)
        return TokenList.of(tokens.ids)

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
