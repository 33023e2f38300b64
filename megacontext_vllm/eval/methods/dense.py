"""Dense retrieval: chunks whose sentence vectors are closest to the question's."""

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.chunked import Chunked
from megacontext_vllm.eval.methods.minilm import MiniLM


class Dense(Chunked):
    """all-MiniLM-L6-v2 over chunks of 32 tokens, which it sees with some of what stands around them."""

    name = "dense"
    summary = "sentence vectors (all-MiniLM-L6-v2) of 32-token chunks, in document order"
    size = 32
    widened_by: ClassVar[int] = 16
    """Tokens on each side that a chunk is embedded with: a sentence that straddles a boundary is seen whole."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._encoder = MiniLM(tools.cache, self.name)

    def index(self, history: NDArray[np.uint32]) -> NDArray[np.float32]:
        """float32 ``[chunks, 384]``."""
        return self._encoder.embed(self.texts(history, self.widened_by))

    def score(self, view: View) -> NDArray[np.float32]:
        # The last bits depend on what else was in a batch, hence on what was cached; the order must not.
        scores: NDArray[np.float32] = np.round(view.index @ self._encoder.embed([view.prompt.question])[0], 4)
        return scores
