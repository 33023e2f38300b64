"""What is asked of a history, and which parts of the prompt ask: what the lenses look for. question.py finds it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

_RECENT = 64  # tokens of an answer under way
_LEANT_ON = 0.5  # what the words of the question before count, beside the question's own

Range = tuple[int, int]
"""Tokens ``[start, stop)`` of the prompt."""


@dataclass(frozen=True)
class Query:
    """What is asked.

    terms, weights  int64 and float32 [terms]: token ids in order of the text, and how much each counts.
    start, end      the asking part of the prompt ``[start, end)``: it must be shown raw, with all that follows it, but
                    for ``result``.
    opening         an instruction at the beginning whose terms count too; (0, 0) without one.
    recent          an answer under way, or its end; (0, 0) without one.
    now, many       whether it asks for what holds now (``present.py``), and for all there is (``many.py``).
    alternatives    ``[start, stop)`` of ``terms`` of each of the things of which it asks for one, and its text.
    document        tokens of text to be read, in front of the question in its message, or of ``result``, of which it
                    does not ask for the end; 0 where the question stands in front, or alone.
    reading         the text that it is asked of: in its message, or what tools returned, or all that was said before.
    overview        it asks for all of ``reading`` (``overview.py``).
    ends            whether it asks for how ``reading`` begins, and for how it ends.
    instructions    tokens up to the end of the system message that the prompt begins with.
    leans_on        the same as ``terms`` and ``weights`` of the question before and its answer, if it leans on them.
    result          what stands behind it and is read for it: what tools returned, or an answer that has begun; (0, 0)
                    without any.
    step            the call of a tool that ``result`` answers, or its end; (0, 0) without one.
    own             what else the conversation says of what is asked, which is no evidence for it.
    beside          what of the conversation must be shown for the question to be understood, the first before the rest.
    questions       where several are asked that stand by themselves: each, to be looked for by itself.
    readings        where what is asked is doubtful: each of what it may be, the likeliest first; else empty.
    """

    terms: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    start: int
    end: int
    opening: Range = (0, 0)
    recent: Range = (0, 0)
    now: bool = False
    many: bool = False
    alternatives: tuple[tuple[int, int, str], ...] = ()
    document: int = 0
    reading: Range = (0, 0)
    overview: bool = False
    ends: tuple[bool, bool] = (False, False)
    instructions: int = 0
    leans_on: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
    result: Range = (0, 0)
    step: Range = (0, 0)
    own: tuple[Range, ...] = ()
    beside: tuple[Range, ...] = ()
    questions: tuple["Query", ...] = ()
    readings: tuple["Query", ...] = ()

    @property
    def asking(self) -> tuple[Range, ...]:
        """Where the prompt itself asks, which is no evidence for itself; the parts may overlap."""
        return ((self.start, self.end), self.opening, self.recent, *self.own)

    def blank(self, values: npt.NDArray[Any], first: int = 0) -> None:
        """Set ``values``, one a token from the token ``first`` on, to -1 where the prompt itself asks."""
        for start, stop in self.asking:
            values[max(0, start - first) : max(0, stop - first)] = -1

    def outside(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Which of ``places``, ascending tokens of the prompt, are not where it asks."""
        found = np.ones(len(places), dtype=np.bool_)
        for start, stop in self.asking:
            found[slice(*np.searchsorted(places, (start, stop)))] = False
        return found

    def within(self, stop: int) -> npt.NDArray[np.intp]:
        """The other tokens of the first ``stop``: where it asks, ascending."""
        parts = [np.arange(start, min(end, stop)) for start, end in self.asking if start < min(end, stop)]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.intp)

    def before(self) -> "Query | None":
        """What it leans on, as a query; None if it stands alone."""
        if self.leans_on is None:
            return None
        return self.looking_for(*self.leans_on)

    def spelled_out(self) -> "Query":
        """The same with what it leans on among its terms, behind its own."""
        if self.leans_on is None:
            return self
        terms, weights = self.leans_on
        return replace(
            self,
            terms=np.concatenate([self.terms, terms]),
            weights=np.concatenate([self.weights, np.float32(_LEANT_ON) * weights]),
        )

    def answered(self, tokens: npt.NDArray[np.uint32], answer: int) -> tuple["Query", "Query"]:
        """The question while it is being answered, and what the answer is about now.

        tokens uint32 [N] end with the ``answer`` > 0 that were said so far. No part of it is evidence for the question;
        for its own end, whose terms are the second query's, all that was said before is.
        """
        end = len(tokens)
        recent = (end - min(answer, _RECENT), end)
        return replace(self, recent=(end - answer, end)), self._about(tokens, recent)

    def doing(self, tokens: npt.NDArray[np.uint32]) -> "Query | None":
        """What the model called a tool for, to be looked for beside the question; None if it called none.

        tokens uint32 [N], the prompt.
        """
        return self._about(tokens, self.step) if self.step[0] < self.step[1] else None

    def _about(self, tokens: npt.NDArray[np.uint32], said: Range) -> "Query":
        terms = tokens[slice(*said)].astype(np.int64)
        return replace(self.looking_for(terms, np.ones(len(terms), dtype=np.float32)), recent=said)

    def looking_for(self, terms: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> "Query":
        """Other terms in the same prompt, of which nothing is known but that they are looked for."""
        return replace(
            self,
            terms=terms,
            weights=weights,
            leans_on=None,
            now=False,
            many=False,
            alternatives=(),
            questions=(),
            readings=(),
        )
