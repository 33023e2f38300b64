"""Tasks whose history is filler with facts hidden in it."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import History, Layout, Sample
from megacontext_vllm.eval.tasks.base import Question, Task, ask
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.planting import NoPlaceError, Wish, plant
from megacontext_vllm.eval.tasks.values import Values

_STRETCHES = 100


@dataclass(frozen=True)
class Fact:
    """A sentence or more, with a leading space. ``depth``: 0 as early, 1 as late as evidence may stand."""

    text: str
    depth: float


class PlantedTask(Task):
    """A task says what is hidden and asked; where and in what is the same for all of them."""

    layout: ClassVar[Layout] = Layout.DOCUMENT

    @abstractmethod
    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        """The facts of a history, in any order, and what is asked about them. All chance is in ``values``."""

    def samples(self, filler: Filler, chat: ChatFormat, length: int, seed: int) -> list[Sample]:
        rng = self.randomness(length, seed)
        facts, questions = self.plan(Values(rng, filler, chat), length, seed)
        wishes = [Wish(chat.encode(fact.text), fact.depth) for fact in facts]
        for _ in range(_STRETCHES):
            try:
                tokens, spans = plant(filler, int(rng.choice(filler.beginnings)), wishes, length)
            except NoPlaceError:
                continue
            history = History(f"{self.name}/{length}/{seed}", tokens, self.layout)
            return ask(self.name, history, questions, spans, rng)
        raise EvaluationError("sentences are too rare in the text to hide facts between them: use prose")
