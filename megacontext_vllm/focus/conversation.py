"""Which message of a prompt asks, what was said before it that it may lean on, and what was done for it since.

A person asks and reads the answer; an agent that is asked looks things up first, so that behind the question stand its
calls of tools and what they returned, which may be a million tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from megacontext_vllm.focus.messages import ASSISTANT, TOOL, USER, Message

_EXCHANGES = 3
"""How far back questions may lean on one another."""


@dataclass(frozen=True)
class Exchange:
    """A question that was asked before, and what was answered, if anything was."""

    question: Message
    answer: Message | None


@dataclass(frozen=True)
class Conversation:
    """The messages of a prompt, by what they are to its question.

    question  the newest that asks: a user's, or one of nobody known; failing both, the newest that is no answer.
    before    up to three exchanges before it, the newest first.
    said      what the model said behind the question; each before it called a tool, if it has not begun to answer.
    step      the last of ``said`` that was answered by a tool, which is what it is doing now; None without one.
    results   what stands behind ``step``, or behind the question: what tools returned, or an answer that has begun.
    """

    question: Message
    before: tuple[Exchange, ...] = ()
    said: tuple[Message, ...] = ()
    step: Message | None = None
    results: tuple[Message, ...] = ()

    @staticmethod
    def of(messages: Sequence[Message], length: int) -> "Conversation":
        """``messages`` of a prompt of ``length`` tokens, in their order."""
        asking = _newest(messages, lambda role: role in (USER, ""))
        if asking is None:
            # An answer that is being continued asks nothing; a tool's result may.
            asking = _newest(messages, lambda role: role != ASSISTANT)
        if asking is None:
            return Conversation(Message("", length, length))
        behind = messages[asking + 1 :]
        said = tuple(message for message in behind if message.role == ASSISTANT)
        returned = _newest(behind, lambda role: role == TOOL)
        called = None if returned is None else _newest(behind[:returned], lambda role: role == ASSISTANT)
        step = None if called is None else behind[called]
        results = tuple(behind[0 if called is None else called + 1 :])
        return Conversation(messages[asking], _exchanges(messages[:asking]), said, step, results)


def _newest(messages: Sequence[Message], is_one: Callable[[str], bool]) -> int | None:
    """Which of ``messages`` is the newest whose role is one."""
    return next((i for i in range(len(messages) - 1, -1, -1) if is_one(messages[i].role)), None)


def _exchanges(messages: Sequence[Message]) -> tuple[Exchange, ...]:
    found: list[Exchange] = []
    answer: Message | None = None
    for message in reversed(messages):
        if len(found) == _EXCHANGES:
            break
        if message.role == ASSISTANT and answer is None:
            answer = message
        elif message.role == USER:
            found.append(Exchange(message, answer))
            answer = None
    return tuple(found)
