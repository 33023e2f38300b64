"""Answers that nothing but a hidden fact can tell: drawn by chance, and none occurs in the filler."""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import product

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler

_FIRST_NAMES = """
    Alder Bryn Clara Corin Dara Edric Elsa Fenna Gareth Hanna Isolde Jarek Jonas Kestrel Lorin Magda Mira Nadia Orin
    Petra Quill Rowan Selma Tamsin Ulric Vera Wanda Yorick Zelda
"""
_LAST_NAMES = "Ashby Blackwood Carver Dunmore Ellery Fairfax Garrick Holloway Ibbotson Kettering Lockhart Merrow"
_MATERIALS = "amber bronze copper crystal ivory leather marble pewter silver velvet walnut willow"
_PLACES = "barn bridge cabin cellar chapel cottage garage garden harbour kitchen library mill stable tower"
FIRST_NAMES = _FIRST_NAMES.split()
LAST_NAMES = _LAST_NAMES.split()
MATERIALS = _MATERIALS.split()
PLACES = _PLACES.split()

_ATTEMPTS = 10_000


class Values:
    """Draws for one history: nothing is drawn twice, and nothing that the filler mentions."""

    def __init__(self, rng: random.Random, filler: Filler, chat: ChatFormat) -> None:
        self.rng = rng
        self._filler = filler
        self._chat = chat
        self._drawn: set[str] = set()

    def numbers(self, count: int, digits: int) -> list[str]:
        """Whole numbers of so many digits, e.g. ``58213``."""
        return self._fresh(count, lambda: str(self.rng.randrange(10 ** (digits - 1), 10**digits)))

    def times(self, count: int) -> list[str]:
        """Times of a day, e.g. ``17:42``."""
        return self._fresh(count, lambda: f"{self.rng.randrange(10, 24)}:{self.rng.randrange(1, 60):02}")

    def phrases(self, count: int, adjectives: Sequence[str], nouns: Sequence[str]) -> list[str]:
        """``count`` times an adjective and a noun, all of as many tokens, none with a word of another."""
        sizes = {word: self.size(word) for word in (*adjectives, *nouns)}
        groups: dict[int, list[tuple[str, str]]] = {}
        for adjective, noun in product(adjectives, nouns):
            groups.setdefault(sizes[adjective] + sizes[noun], []).append((adjective, noun))
        pairs = max(groups.values(), key=len)
        self.rng.shuffle(pairs)
        chosen: list[str] = []
        words: set[str] = set()
        for pair in pairs:
            phrase = " ".join(pair)
            if len(chosen) < count and words.isdisjoint(pair) and self._is_fresh(phrase):
                words.update(pair)
                chosen.append(phrase)
        if len(chosen) < count:
            raise self._too_few("phrases")
        self._drawn.update(chosen)
        # Whatever is chosen first limits the rest, so their order would not be chance.
        self.rng.shuffle(chosen)
        return chosen

    def unmentioned(self, texts: Iterable[str]) -> list[str]:
        """Those of ``texts`` that the filler does not mention, in their order."""
        return [text for text in texts if not self._filler.mentions(text)]

    def size(self, text: str) -> int:
        """Tokens of ``text`` behind a space."""
        return len(self._chat.encode(f" {text}"))

    def _fresh(self, count: int, draw: Callable[[], str]) -> list[str]:
        chosen: list[str] = []
        for _ in range(_ATTEMPTS):
            if len(chosen) == count:
                return chosen
            value = draw()
            if self._is_fresh(value):
                chosen.append(value)
                self._drawn.add(value)
        raise self._too_few("numbers")

    def _is_fresh(self, value: str) -> bool:
        return value not in self._drawn and not self._filler.mentions(value)

    def _too_few(self, what: str) -> EvaluationError:
        return EvaluationError(f"the text leaves too few {what} that do not occur in it: use less text")
