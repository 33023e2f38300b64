"""What a task is: something that makes questions about long histories, and knows where the answers stand."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import CHOICES, History, Sample, Span
from megacontext_vllm.eval.tasks.filler import Filler

_GOLDEN = 0.6180339887498949


class Task(ABC):
    """One ability. New ones are a small class in a file of their own, listed in ``tasks/__init__.py``."""

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for listings."""
    for_larger_readers: ClassVar[bool] = False
    """Whether the default reader fails at it even if it is shown the evidence alone."""

    @abstractmethod
    def samples(self, filler: Filler, chat: ChatFormat, length: int, seed: int) -> list[Sample]:
        """A few questions about one history of ``length`` tokens; the same for the same arguments, everywhere.

        Raises EvaluationError if the text is too short for it.
        """

    def randomness(self, length: int, seed: int) -> random.Random:
        """The only source of chance in a sample."""
        return random.Random(f"{self.name}/{length}/{seed}")


@dataclass(frozen=True)
class Question:
    """What is asked, as in ``Sample``.

    wrong  the other candidates: three, or more to choose three of.
    facts  which of the hidden facts are the evidence.
    said   what was said besides.
    """

    text: str
    answer_start: str
    answer: str
    wrong: tuple[str, ...]
    facts: tuple[int, ...]
    said: tuple[tuple[str, str], ...] = ()


def ask(
    task: str, history: History, questions: Iterable[Question], spans: list[Span], rng: random.Random
) -> list[Sample]:
    """Samples of questions about a history. ``spans``: where each hidden fact lies.

    The right candidate stands equally often at each place, over any ``CHOICES`` questions of a history.
    """
    samples: list[Sample] = []
    places: list[int] = []
    for number, question in enumerate(questions):
        places = places or rng.sample(range(CHOICES), CHOICES)
        candidates = rng.sample(question.wrong, CHOICES - 1)
        candidates.insert(places.pop(), question.answer)
        samples.append(
            Sample(
                id=f"{history.id}/{number}",
                task=task,
                history=history,
                question=question.text,
                answer_start=question.answer_start,
                answer=question.answer,
                candidates=tuple(candidates),
                evidence=tuple(sorted(spans[fact] for fact in question.facts)),
                said=question.said,
            )
        )
    return samples


def depths(count: int, seed: int) -> list[float]:
    """``count`` depths in [0, 1), one in each of ``count`` equal parts; over many seeds they are spread evenly."""
    return [(part + (0.5 + seed * _GOLDEN) % 1) / count for part in range(count)]
