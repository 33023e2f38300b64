"""Tokenise only what is new: a client resends its whole history, and most of it was tokenised a moment ago.

Tokenising is the one cost in front of the engine that grows with the history. A known text is the first piece of a text
that begins like it: what is new is tokenised from some way before the departure, and joined as pieces are.
"""

import itertools
import sys
from dataclasses import dataclass
from operator import itemgetter

from megacontext_vllm.engine.remembered import Remembered
from megacontext_vllm.engine.token_pieces import Encoder, Tokens, tokenise
from megacontext_vllm.engine.token_transport import TokenList

LONG = 32_768  # characters; shorter texts are tokenised in milliseconds
_COMPARED = 16  # texts that begin alike and go on otherwise: the last of them are compared to the character


@dataclass(frozen=True)
class _Known:
    text: str
    begins: int  # a hash of its first characters
    tokens: Tokens

    @property
    def bytes(self) -> int:
        return sum(map(sys.getsizeof, (self.text, self.tokens.ids, self.tokens.marks)))


class TokenReuse:
    """Known texts of a front end. Threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of all of them together; the last one is kept whatever it has."""
        self._known = Remembered[int, _Known](max_bytes, lambda known: known.bytes)
        self._numbers = itertools.count()

    def tokenise(self, namespace: str | None, text: str, encoder: Encoder) -> list[int]:
        """Token ids of ``text``, the same as ``encoder.encode([text])[0].ids``."""
        if len(text) < LONG:
            return encoder.encode([text])[0].ids
        begins = hash(text[:LONG])
        key, known, common = self._longest(namespace, text, begins)
        tokens = tokenise(text, encoder, known.tokens if known is not None else None, common)
        # A text that goes on where the known one ended, or asks something else there, takes its place; one that
        # departs before is kept beside it.
        end = 0 if known is None else len(known.text) - common
        replaces = key if known is not None and end <= min(LONG, len(known.text) // 16) else None
        self._known.put(namespace, next(self._numbers), _Known(text, begins, tokens), instead=replaces)
        return TokenList.of(tokens.ids)

    def _longest(self, namespace: str | None, text: str, begins: int) -> tuple[int | None, _Known | None, int]:
        """The known text that ``text`` has most of at its start, its key, and how many characters that are."""
        alike = [(key, known) for key, known in self._known.of(namespace) if known.begins == begins]
        # Many chats may share a long system message: those that do not go on as this one are told in no time.
        whole = [(len(known.text), key, known) for key, known in alike if text.startswith(known.text)]
        best: tuple[int | None, _Known | None, int] = (None, None, 0)
        if whole:
            common, key, known = max(whole, key=itemgetter(0))
            best = (key, known, common)
        if best[2] < len(text) // 2:
            for key, known in alike[-_COMPARED:]:
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
