"""Tokenise only what is new: a client resends its whole history, and most of it was tokenised a moment ago.

Tokenising is the one cost in front of the engine that grows with the history. A known text is the first piece of a text
that begins like it: what is new is tokenised from some way before the departure, and joined as pieces are.
"""

import itertools
from dataclasses import dataclass

from megacontext_vllm.engine.remembered import Remembered
from megacontext_vllm.engine.token_pieces import Encoder, Tokens, tokenise
from megacontext_vllm.engine.token_transport import TokenList

LONG = 32_768  # characters; shorter texts are tokenised in milliseconds


@dataclass(frozen=True)
class _Known:
    text: str
    tokens: Tokens


class TokenReuse:
    """Known texts of a front end. Threads may share it."""

    def __init__(self, max_characters: int = 32_000_000) -> None:
        """max_characters: of all of them together; the last one is kept whatever it has."""
        self._known = Remembered[int, _Known](max_characters, lambda known: len(known.text))
        self._numbers = itertools.count()

    def tokenise(self, namespace: str | None, text: str, encoder: Encoder) -> list[int]:
        """Token ids of ``text``, the same as ``encoder.encode([text])[0].ids``."""
        if len(text) < LONG:
            return encoder.encode([text])[0].ids
        key, known, common = self._longest(namespace, text)
        tokens = tokenise(text, encoder, known.tokens if known is not None else None, common)
        # A text that goes on where the known one ended takes its place; one that departs is kept beside it.
        replaces = key if known is not None and common == len(known.text) else None
        self._known.put(namespace, next(self._numbers), _Known(text, tokens), instead=replaces)
        return TokenList.of(tokens.ids)

    def _longest(self, namespace: str | None, text: str) -> tuple[int | None, _Known | None, int]:
        best: tuple[int | None, _Known | None, int] = (None, None, 0)
        for key, known in self._known.of(namespace):
            if known.text[:LONG] == text[:LONG]:
                common = _common_length(known.text, text)
                if common > best[2]:
                    best = (key, known, common)
        return best


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
