"""What a task makes: a question about a long history, with the answer and the tokens that hold it."""

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Span = tuple[int, int]
"""Tokens ``[start, stop)`` of a history."""

CHOICES = 4
"""Candidates of a question: guessing is right in a quarter of the cases."""


class Layout(Enum):
    """Where the history stands in the prompt."""

    DOCUMENT = "document"
    """Text in the user's only message, in front of the question."""
    CHAT = "chat"
    """The turns of a conversation before the question, rendered by the reader's chat template."""
    FOLLOW_UP = "follow_up"
    """Text in the user's first message, in front of a question that was answered since; then comes the question."""
    TOOL_RESULT = "tool_result"
    """What a tool returned: behind the question, and behind the model's call of the tool."""
    TEXT = "text"
    """Plain text that is to be continued; no chat template."""


@dataclass(frozen=True, eq=False)
class History:
    """What does not fit the window. ``tokens``: uint32 ``[N]``, of the reader's tokenizer.

    ``messages``: (role, content) of every turn of a conversation, for a reader that is sent them as such.
    """

    id: str
    tokens: NDArray[np.uint32]
    layout: Layout
    messages: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, eq=False)
class Sample:
    """One question. Questions about one history share it, so that its indexes are made once.

    question      what is asked; empty for a continuation.
    said          (role, content) of what else was said: of a follow-up the user's first question and its answer, of a
                  tool's result the model's call; empty in other layouts.
    answer_start  what the answer begins with, and the reader is to go on from, e.g. ``"The code of Mira is"``.
    answer        the rest, as it follows ``answer_start``: with its leading space.
    candidates    ``CHOICES`` answers of one form, ``answer`` among them; empty for a continuation.
    evidence      the tokens that hold what is asked, in order; empty for a continuation.
    target        uint32 ``[n]``, what follows the history; empty unless it is a continuation.
    """

    id: str
    task: str
    history: History
    question: str = ""
    answer_start: str = ""
    answer: str = ""
    candidates: tuple[str, ...] = ()
    evidence: tuple[Span, ...] = ()
    target: NDArray[np.uint32] | None = None
    said: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        length = len(self.history.tokens)
        assert all(0 <= start < stop <= length for start, stop in self.evidence), self.evidence
        if self.target is None:
            assert len(set(self.candidates)) == CHOICES and self.answer in self.candidates, self.candidates
            assert self.question and self.evidence, "a question has words, and something that answers it"
        leans = self.history.layout is Layout.FOLLOW_UP
        assert not leans or [role for role, _ in self.said] == ["user", "assistant"], "a follow-up has what it leans on"
