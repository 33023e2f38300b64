"""A window in a layout, as the model's inputs: what stands in front of the targets, and at which positions."""

from dataclasses import dataclass
from enum import Enum

import torch

from megacontext_vllm.eval.gists.layouts import TARGETS, GistLayout


class Positions(Enum):
    """Where the model is told that the entries stand."""

    COMPACT = "compact"
    """One after the other, as they are served."""
    SPAN = "span"
    """Each where its tokens stand in the window; a gist in the middle of its span."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Inputs of ``b`` windows, up to the last target but one.

    ``rows``: float32 ``[b, W, d]``; ``positions``: int64 ``[W]``.
    """

    rows: torch.Tensor
    positions: torch.Tensor


class Showing:
    """``embedding``: float32 ``[V, d]``; ``sink``: the token that stands first, whatever follows."""

    def __init__(self, embedding: torch.Tensor, sink: int) -> None:
        self._embedding = embedding
        self._sink = sink

    def full(self, windows: torch.Tensor) -> Shown:
        """All of ``windows``, int64 ``[b, n]``, raw."""
        return self._show(None, windows, torch.arange(windows.shape[1]))

    def dropped(self, windows: torch.Tensor, layout: GistLayout) -> Shown:
        """Only the raw tail, the older part left out."""
        return self.full(windows[:, layout.older :])

    def gisted(self, windows: torch.Tensor, layout: GistLayout, gists: torch.Tensor, positions: Positions) -> Shown:
        """``gists``, float32 ``[b, g, d]``: of the last ``g`` nodes of the older part."""
        raw = windows[:, layout.older :]
        first = layout.gists - gists.shape[1]
        if positions is Positions.SPAN:
            middles = torch.arange(first, layout.gists) * layout.span + layout.span // 2
            at = torch.cat([middles, layout.older + torch.arange(raw.shape[1])])
        else:
            at = torch.arange(gists.shape[1] + raw.shape[1])
        return self._show(gists, raw, at)

    def _show(self, gists: torch.Tensor | None, raw: torch.Tensor, at: torch.Tensor) -> Shown:
        """``at``: positions behind the sink of gists and raw tokens, the last target's included."""
        assert raw.shape[1] >= TARGETS
        sink = self._embedding[self._sink].expand(raw.shape[0], 1, -1)
        seen = self._embedding[raw[:, :-1]]
        rows = torch.cat([sink, seen] if gists is None else [sink, gists, seen], dim=1)
        positions = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + at[:-1]])
        assert len(positions) == rows.shape[1]
        return Shown(rows, positions)
