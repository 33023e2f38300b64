"""MegaContext's focus over the gists of the GistNet that comes with this package for the reader's model."""

from collections import OrderedDict
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.focused import Focused, Vectors
from megacontext_vllm.eval.methods.gist_vectors import embedding_of
from megacontext_vllm.eval.sample import Span
from megacontext_vllm.tree.nodes import BLOCK

_REMEMBERED = 4096
"""Gists kept: questions about one history ask for the same coarse nodes, which stand for up to a million tokens."""
_TOKENS_AT_ONCE = 32_768


class TrainedGists(Focused):
    """What is not expanded shows as the gists that ``vllm serve`` would show."""

    name = "trained_gists"
    summary = "MegaContext's focus, the rest as gists of the GistNet that comes with this version"
    gists = True
    shows_gists = True

    def __init__(self, tools: Tools) -> None:
        from megacontext_vllm.nets.checkpoints import load
        from megacontext_vllm.nets.model_fingerprint import embedding_digest, model_fingerprint, sampled_ids
        from megacontext_vllm.nets.shipped import find_shipped

        super().__init__(tools)
        self._table = embedding_of(tools, self.name)
        digest = embedding_digest(self._table[sampled_ids(len(self._table))])
        fingerprint = model_fingerprint(tools.chat.tokenizer, digest)
        weights = find_shipped(fingerprint)
        if weights is None:
            raise EvaluationError(
                f"method '{self.name}': no GistNet comes with this version for the reader's model (fingerprint "
                f"{fingerprint.hex()}); leave the method out, or serve one that you trained and measure the server"
            )
        self._net = load(weights, self._table.shape[1], fingerprint)
        self._made: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    def vectors(self, view: View) -> Vectors:
        return self._vectors

    def _vectors(self, tokens: NDArray[np.uint32], spans: list[Span]) -> list[NDArray[np.float32]]:
        return [self._gist(tokens[start:stop]) for start, stop in spans]

    def _gist(self, under: NDArray[np.uint32]) -> NDArray[np.float32]:
        key = blake2b(under.tobytes(), digest_size=16).digest()
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(under)
            if len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        self._made.move_to_end(key)
        return made

    def _make(self, under: NDArray[np.uint32]) -> NDArray[np.float32]:
        """From the bottom up; LOD1 in pieces, since the embeddings of a large node are gigabytes."""
        import torch

        with torch.inference_mode():
            pieces = torch.from_numpy(under.astype(np.int64)).split(_TOKENS_AT_ONCE)
            rows = torch.cat([self._net(self._table[ids].view(-1, BLOCK, self._table.shape[1]), 1) for ids in pieces])
            level = 2
            while len(rows) > 1:
                rows = self._net(rows.view(-1, BLOCK, rows.shape[-1]), level)
                level += 1
        gist: NDArray[np.float32] = rows[0].float().numpy()
        return gist
