"""A quick look at a net while it is trained, in the layouts of ``eval gists``: a curve, not a verdict."""

from dataclasses import dataclass

import numpy as np
import torch

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.eval.gists.layouts import HARD_1, NEAR_1, TARGETS, GistLayout
from megacontext_vllm.nets.gistnet import BLOCK, GistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.gisting import make_gists
from megacontext_vllm.training.gistnet.windows import Windows

LAYOUTS = {"near": NEAR_1, "hard": HARD_1}
SEED = 7


@dataclass(frozen=True)
class Validated:
    """Mean NLL of the targets in nats: all of the text shown, only the raw tail, the tail behind gists."""

    full: float
    dropped: float
    gisted: float

    @property
    def recovered(self) -> float:
        return (self.dropped - self.gisted) / (self.dropped - self.full)


class Validation:
    """Fixed windows of a split; what does not depend on the net is read once, at the first call.

    layouts  by name. windows  how many of each, spread over the sources. batch: windows that are read together.
    """

    def __init__(
        self,
        base: FrozenModel,
        stream: TokenStream,
        windows: int,
        layouts: dict[str, GistLayout] = LAYOUTS,
        batch: int = 4,
    ) -> None:
        self._base = base
        self._batch = batch
        self._drawn = {
            name: torch.from_numpy(Windows(stream, layout.length).spread(np.random.default_rng(SEED), windows))
            for name, layout in layouts.items()
        }
        self._layouts = layouts
        self._controls: dict[str, tuple[float, float]] = {}

    @torch.no_grad()
    def __call__(self, net: GistNet) -> dict[str, Validated]:
        if not self._controls:
            self._controls = {
                name: (self._nll(drawn, 0, None), self._nll(drawn, self._layouts[name].older, None))
                for name, drawn in self._drawn.items()
            }
        return {
            name: Validated(*self._controls[name], self._nll(drawn, self._layouts[name].older, net))
            for name, drawn in self._drawn.items()
        }

    def _nll(self, windows: torch.Tensor, older: int, net: GistNet | None) -> float:
        """Tokens from ``older`` on are shown raw, those before as gists of ``net`` or, without one, not at all."""
        losses = []
        for ids in windows.to(self._base.device).split(self._batch):
            embeds = self._base.embed(ids)
            parts = [self._base.embed(torch.full_like(ids[:, :1], self._base.sink))]
            if net is not None:
                nodes = [(1, index) for index in range(older // BLOCK)]
                parts.append(make_gists(net, embeds, nodes).to(embeds.dtype))
            hidden = self._base.hidden(torch.cat([*parts, embeds[:, older:-1]], dim=1))[:, -TARGETS:]
            logits = self._base.logits(hidden)
            targets = ids[:, -TARGETS:].flatten()
            losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none"))
        return float(torch.cat(losses).mean())


def describe(validated: dict[str, Validated]) -> dict[str, dict[str, float]]:
    """For the curve and the card."""
    return {
        name: {
            "full": round(each.full, 5),
            "dropped": round(each.dropped, 5),
            "gisted": round(each.gisted, 5),
            "recovered": round(each.recovered, 5),
        }
        for name, each in validated.items()
    }
