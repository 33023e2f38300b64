"""MegaContext's focus over the gists of a trained GistNet."""

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.focused import Focused, Vectors
from megacontext_vllm.eval.methods.gist_vectors import embedding_of, gist_vectors
from megacontext_vllm.tree.nodes import BLOCK

if TYPE_CHECKING:
    import torch


class Trained(Focused):
    """What is not expanded shows as gists of the net that ``settings.gist_net`` names; None: of the shipped one."""

    name = "trained_gists"
    summary = "MegaContext's focus, the rest as gists of a trained GistNet (--gist-net)"
    gists = True
    shows_gists = True

    def __init__(self, tools: Tools) -> None:
        from megacontext_vllm.eval.gists.makers import NetGists
        from megacontext_vllm.nets.gistnet import load_gist_net
        from megacontext_vllm.nets.model_fingerprint import table_fingerprint

        super().__init__(tools)
        embedding = embedding_of(tools, self.name)
        fingerprint = table_fingerprint(tools.chat.tokenizer, embedding)
        net = load_gist_net(tools.settings.gist_net or "shipped", embedding.shape[1], fingerprint)
        self._maker = NetGists(self.name, net, embedding)

    def gists_of(self, tokens: "torch.Tensor") -> "torch.Tensor":
        """int64 ``[n, 32**level]`` → float32 ``[n, d]``."""
        return self._maker.gists(tokens, round(np.log(tokens.shape[1]) / np.log(BLOCK)))

    def vectors(self, view: View) -> Vectors:
        return partial(gist_vectors, self.gists_of)
