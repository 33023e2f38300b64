"""MegaContext's focus over gists that are each one token's embedding."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.focused import Focused, Vectors
from megacontext_vllm.eval.methods.gist_vectors import embedding_of, gist_vectors


class Keyword(Focused):
    """What is not expanded shows as ``nets.training_free.KeywordGists``, rare being what is rare in the history."""

    name = "keyword_gists"
    summary = "MegaContext's focus, the rest as gists: the embedding of the rarest token"
    gists = True
    shows_gists = True

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self.embedding = embedding_of(tools, self.name)

    def index(self, history: NDArray[np.uint32]) -> NDArray[np.int64]:
        """int64 ``[V]``: how often each token stands in the history."""
        return np.bincount(history, minlength=len(self.embedding))

    def vectors(self, view: View) -> Vectors:
        import torch

        from megacontext_vllm.nets.training_free import KeywordGists

        return partial(gist_vectors, KeywordGists(self.embedding, torch.from_numpy(view.index)).gists)
