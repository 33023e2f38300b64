"""The loss of one batch of windows: packed Working Contexts read by the frozen model, beside all of the text."""

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext_vllm.nets.gistnet import BLOCK, GistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.gisting import make_gists
from megacontext_vllm.training.gistnet.losses import ContrastiveHead, head_loss, hidden_loss
from megacontext_vllm.training.gistnet.packing import Packing
from megacontext_vllm.training.gistnet.recipe import Recipe


class Objective:
    """``contrast`` is a part of what is trained, but not of what is kept; None where the recipe has no such term."""

    def __init__(self, base: FrozenModel, recipe: Recipe, contrast: ContrastiveHead | None) -> None:
        self.base = base
        self.recipe = recipe
        self.contrast = contrast
        self._sink = base.embed(torch.tensor([[base.sink]], device=base.device))  # [1, 1, d]

    def __call__(
        self, net: GistNet, windows: NDArray[np.int64], packing: Packing, *, match_hidden: bool = False
    ) -> torch.Tensor:
        """The loss of windows ``[B, W]`` that are all packed alike."""
        ids = torch.from_numpy(windows).to(self.base.device)
        embeds = self.base.embed(ids)
        with torch.autocast(self.base.device.type, torch.bfloat16, enabled=self.recipe.autocast):
            gists = make_gists(net, embeds, packing.nodes)
        packed, positions, visible = self.packed(embeds, gists, packing)
        places = torch.from_numpy(packing.places).to(ids.device)
        # Place i of the window is at 1 + i behind the sink, and foretells what comes next.
        foretelling = torch.from_numpy(packing.targets).to(ids.device)
        whole = torch.cat([self._sink.expand(len(ids), -1, -1), embeds], dim=1)
        if match_hidden:
            assert self.base.layers is not None
            layer = len(self.base.layers) * 2 // 5  # layer 12 of 30 worked (quality.md)
            with torch.no_grad():
                teacher = self.base.hidden_at(layer, whole)[:, foretelling]
            student = self.base.hidden_at(layer, packed, positions, visible)[:, places]
            return hidden_loss(student.flatten(0, 1), teacher.flatten(0, 1))
        states = None
        if self.recipe.kl or self.contrast is not None:
            with torch.no_grad():
                states = self.base.hidden(whole)
        student = self.base.hidden(packed, positions, visible)[:, places].flatten(0, 1)
        teacher = states[:, foretelling].flatten(0, 1) if states is not None else None
        targets = ids[:, foretelling].flatten()
        loss = head_loss(student, teacher, targets, self.base.logits, self.recipe.kl, self.recipe.nll)
        if self.contrast is not None and states is not None:
            loss = loss + self.recipe.contrastive * self._contrast(gists, states[:, 1:], packing)
        return loss

    def packed(
        self, embeds: torch.Tensor, gists: torch.Tensor, packing: Packing
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What ``FrozenModel.hidden`` takes: embeddings ``[B, T, d]``, positions ``[T]``, who sees whom ``[T, T]``.

        embeds: ``[B, W, d]`` of the windows; gists: ``[B, len(packing.nodes), d]``.
        """
        device = embeds.device
        shown = torch.cat([self._sink.expand(len(embeds), -1, -1), embeds, gists.to(embeds.dtype)], dim=1)
        rows = torch.from_numpy(packing.rows).to(device)
        positions = torch.from_numpy(packing.positions).to(device)
        return shown[:, rows], positions, torch.from_numpy(packing.visible).to(device)

    def _contrast(self, gists: torch.Tensor, states: torch.Tensor, packing: Packing) -> torch.Tensor:
        """Over the LOD1 gists of all windows together."""
        assert self.contrast is not None
        which = [place for place, (level, _) in enumerate(packing.nodes) if level == 1]
        if not which:
            return gists.new_zeros(())
        blocks = [packing.nodes[place][1] for place in which]
        means = states.unflatten(1, (-1, BLOCK)).mean(dim=2)[:, blocks]
        return self.contrast(gists[:, which].flatten(0, 1), means.flatten(0, 1))
