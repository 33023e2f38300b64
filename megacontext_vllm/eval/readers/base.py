"""What a reader is: a model that is shown a prompt with a context in place of its history, and asked."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from megacontext_vllm.eval.context import Context
from megacontext_vllm.eval.prompt import Prompt
from megacontext_vllm.eval.sample import Sample


@dataclass(frozen=True)
class Reading:
    """What came of a question.

    choice   which candidate the reader prefers (index); None where it cannot be asked.
    exact    whether its greedy answer begins with the right one.
    answer   what it said, where it was generated.
    losses   mean NLL per token of each candidate, nats; empty where it is not known.
    prefill  entries that were prefilled.
    seconds  wall time.
    """

    choice: int | None
    exact: bool
    answer: str | None
    losses: tuple[float, ...]
    prefill: int
    seconds: float


class Reader(ABC):
    """A frozen model. Any sequence of calls gives the same result as each call alone."""

    name: str
    """What stands in results: model and kind."""

    @abstractmethod
    def ask(self, prompt: Prompt, context: Context, sample: Sample) -> Reading:
        """Answer a question; ``sample`` brings the candidates and the right one. Raises ReaderError."""

    def continue_text(self, prompt: Prompt, context: Context, sample: Sample) -> float | None:
        """Mean NLL, nats per token, of ``sample.target`` behind the prompt; None if the reader cannot tell."""
        return None
