"""Tries a LensNet: facts hidden in a long text, questions in other words, and how many blocks look better.

No tokenizer is asked: words, with the space before them, are the tokens here. So a net is judged for all of them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.meaning import MeaningLens
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.spelling import Spelling
from megacontext_vllm.nets.lensnet import LensNet
from megacontext_vllm.training.lensnet.questions import QUESTIONS
from megacontext_vllm.tree.nodes import BLOCK

FOUND = 16
"""Blocks that a budget of about 1,024 shows beside what is pinned and the neighbours."""
_TOKEN = re.compile(r"\s*(?:\w+|[^\w\s])")


@dataclass(frozen=True)
class Trial:
    """One history with every fact in it, and the questions.

    vocabulary  the text of each token id. tokens: uint32 ``[N]``.
    questions   int64 ``[terms]`` each, token ids. facts: the blocks ``[first, last]`` that hold the answer of each.
    """

    vocabulary: list[str]
    tokens: npt.NDArray[np.uint32]
    questions: list[npt.NDArray[np.int64]]
    facts: list[tuple[int, int]]

    @staticmethod
    def of(texts: Iterable[str], length: int, seed: int = 0) -> "Trial":
        """Facts at random places of the first ``length`` words of ``texts``; fewer if they have fewer."""
        ids: dict[str, int] = {}

        def number(pieces: Iterable[str]) -> list[int]:
            return [ids.setdefault(piece, len(ids)) for piece in pieces]

        history = number(islice((found[0] for text in texts for found in _TOKEN.finditer(text)), length))
        rng = np.random.default_rng(seed)
        at = np.sort(rng.integers(0, len(history) + 1, len(QUESTIONS))).tolist()
        order = rng.permutation(len(QUESTIONS)).tolist()
        tokens: list[int] = []
        facts: dict[int, tuple[int, int]] = {}
        done = 0
        for place, which in zip(at, order, strict=True):
            tokens += history[done:place]
            start, done = len(tokens), place
            tokens += number(_TOKEN.findall(" " + QUESTIONS[which][0].format(rng.integers(1000, 10_000))))
            facts[which] = (start // BLOCK, (len(tokens) - 1) // BLOCK)
        tokens += history[done:]
        tokens += number(["\n"] * BLOCK)  # the last fact, too, is in a full block
        questions = [np.array(number(_TOKEN.findall(asked)), dtype=np.int64) for _, asked in QUESTIONS]
        return Trial(list(ids), np.array(tokens, dtype=np.uint32), questions, [facts[i] for i in range(len(facts))])

    @cached_property
    def _spelling(self) -> Spelling:
        return Spelling(self.vocabulary)  # the same for every net that is tried

    def ranks(self, net: LensNet) -> npt.NDArray[np.int64]:
        """int64 ``[questions]``: how many other blocks are found at least as useful as the fact's best, 0 for none."""
        ends = np.array([piece.endswith((".", "?", "!")) for piece in [*self.vocabulary, ""]])
        lens = MeaningLens(self._spelling, net, ends)
        history = History(self.tokens, self._spelling)
        ranks = []
        for terms, (first, last) in zip(self.questions, self.facts, strict=True):
            utility = lens.score(history, Query(terms, np.ones(len(terms), dtype=np.float32), 0, 0))
            alike = utility >= utility[first : last + 1].max()
            ranks.append(int(alike.sum() - alike[first : last + 1].sum()))
        return np.array(ranks, dtype=np.int64)


def loss(ranks: npt.NDArray[np.int64]) -> float:
    """Mean log2(1 + rank): 0 where every fact is the best block, 1 more where each is twice as far down."""
    return float(np.log2(1.0 + ranks).mean())
