"""MegaContext's focus over gists that are centred means of embeddings."""

from functools import partial

from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.focused import Focused, Vectors
from megacontext_vllm.eval.methods.gist_vectors import embedding_of, gist_vectors


class CentredMean(Focused):
    """What is not expanded shows as ``nets.training_free.CentredMeanGists``."""

    name = "centred_mean_gists"
    summary = "MegaContext's focus, the rest as gists: centred means of embeddings"
    gists = True
    shows_gists = True

    def __init__(self, tools: Tools) -> None:
        from megacontext_vllm.nets.training_free import CentredMeanGists

        super().__init__(tools)
        self.maker = CentredMeanGists(embedding_of(tools, self.name))

    def vectors(self, view: View) -> Vectors:
        return partial(gist_vectors, self.maker.gists)
