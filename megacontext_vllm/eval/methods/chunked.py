"""Retrieval: chunks of equal size, scored against the question, the best of them in the order of the history.

Document order reads better than order of score (OP-RAG, Yu et al. 2024, arXiv:2409.01666).
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.context import Context, show_best
from megacontext_vllm.eval.methods.base import Method, View
from megacontext_vllm.eval.sample import Span


class Chunked(Method):
    """A history in chunks of ``size`` tokens, the last one shorter; ``score`` says which are worth showing."""

    size: ClassVar[int]

    def spans(self, length: int) -> list[Span]:
        """The chunks of a history of ``length`` tokens, in order."""
        return [(start, min(start + self.size, length)) for start in range(0, length, self.size)]

    def texts(self, history: NDArray[np.uint32], widen: int = 0) -> list[str]:
        """The text of each chunk, with ``widen`` tokens more on both sides."""
        decode = self.tools.chat.decode
        return [decode(history[max(start - widen, 0) : stop + widen]) for start, stop in self.spans(len(history))]

    @abstractmethod
    def score(self, view: View) -> NDArray[np.float32]:
        """float32 [chunks]: what each is worth for the question; 0 where there is no telling."""

    def select(self, view: View, budget: int) -> Context:
        score = self.score(view)
        spans = self.spans(len(view.prompt.history))
        # What the question says nothing about is shown newest first: the budget is spent, as other methods spend it.
        place = np.arange(len(spans))
        order = np.lexsort((np.where(score == 0, -place, place), -score))
        return show_best((spans[i] for i in order.tolist()), len(view.prompt.history), budget, self.tools.gap)
