"""What a method is: something that chooses what to show of a history within a budget."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.eval.context import Context
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.sample import Span


class Tools:
    """What methods may use of the reader's model; made once.

    ``chat``: tokenizer and template. ``gap``: token ids of the marker for what is left out. ``cache``: a folder that
    may be filled. ``embedding``: float32 ``[vocabulary, d]``, the model's input embeddings, None if not at hand (a
    server); methods that need it say so. ``longest``: tokens of history that the reader can be shown whole, None if not
    known. ``settings``: what MegaContext is served with.
    """

    def __init__(
        self,
        chat: ChatFormat,
        gap: Sequence[int],
        cache: Path,
        embedding: NDArray[np.float32] | None = None,
        longest: int | None = None,
        settings: MegaContextConfig | None = None,
    ) -> None:
        self.chat = chat
        self.gap = tuple(gap)
        self.cache = cache
        self.embedding = embedding
        self.longest = longest
        self.settings = settings or MegaContextConfig()


@dataclass(frozen=True, eq=False)
class View:
    """What a method sees of a sample: not the answer, not the candidates, not the evidence.

    ``index``: what the method's own ``index`` returned for this history.
    """

    prompt: Prompt
    index: Any


class Method(ABC):
    """One way to fill a budget. New ones are a small class in a file of their own, listed in ``methods/__init__.py``.

    ``fits`` is asked first; ``index`` is called once per history and may take long; ``select`` once per question and
    budget. All three are deterministic. A history that fits the budget is shown raw and whole.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for listings."""
    shows_gists: ClassVar[bool] = False
    """Whether it may show embeddings, which a text server cannot take."""
    within_budget: ClassVar[bool] = True
    """Whether it keeps to the budget; only what is not a choice (all of the history) does not."""
    needs_server: ClassVar[bool] = False
    """Whether it is the server that chooses."""
    least_budget: ClassVar[int] = 1
    """Entries below which it is not asked."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools

    def fits(self, length: int, budget: int) -> bool:
        """Whether the method can be asked about a history of ``length`` tokens at this budget."""
        return True

    def index(self, history: NDArray[np.uint32]) -> Any:
        """What can be made of a history, uint32 ``[N]``, before anything is asked. Nothing by default."""
        return None

    @abstractmethod
    def select(self, view: View, budget: int) -> Context:
        """What to show of ``view.prompt.history``; the context costs at most ``budget`` entries."""


class Cheat(Method):
    """A method that is told the evidence: an upper bound for what any choice can reach. Only the oracle is one."""

    def select(self, view: View, budget: int) -> Context:
        raise AssertionError("a cheat is asked by select_told")

    @abstractmethod
    def select_told(self, view: View, budget: int, evidence: tuple[Span, ...]) -> Context:
        """As ``select``, knowing where the answer is."""
