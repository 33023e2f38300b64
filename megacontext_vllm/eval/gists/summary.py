"""From losses to what is said of gists: ΔNLL, recovered fraction, harm, each with its 95 % interval."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.bootstrap import interval, ratio_interval
from megacontext_vllm.eval.gists.measure import Losses, Measured, Way

ALL = ""
"""The group of all sources together."""


@dataclass(frozen=True)
class Estimate:
    """``low`` and ``high`` of the 95 % bootstrap interval over windows; nan if there is one window."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One way to show gists, in one layout, in one group of sources.

    delta      NLL@64 minus that of the full context, nats per token; None where that was not read.
    recovered  (NLL of dropping − NLL) / (NLL of dropping − NLL of full): 0 is as if dropped, 1 as if shown whole.
    harm       NLL minus that of dropping: above 0 gists do harm.
    """

    layout: str
    way: Way
    group: str
    windows: int
    documents: int
    delta: Estimate | None
    recovered: Estimate | None
    harm: Estimate

    @property
    def harmful(self) -> bool:
        """Worse than dropped, beyond noise."""
        return self.harm.low > 0


def summarise(measured: Sequence[Measured]) -> list[Cell]:
    """Every layout and way, over all windows and in each source."""
    cells = []
    for layout in measured:
        sources = np.array(layout.sources)
        for group in (ALL, *sorted(set(layout.sources))):
            chosen = np.flatnonzero(sources == group) if group else np.arange(len(sources))
            cells += [_cell(layout, way, group, chosen) for way in layout.shown]
    return cells


def difference(losses: Losses, base: Losses) -> Estimate:
    """Of the mean of ``losses`` minus ``base``, ``[N]`` of the same windows."""
    return Estimate(float(np.mean(losses - base)), *interval(losses - base))


def recovered_fraction(losses: Losses, dropped: Losses, full: Losses) -> Estimate:
    """Of the means; all ``[N]``, of the same windows."""
    gained, gap = dropped - losses, dropped - full
    value = float(gained.sum() / gap.sum()) if gap.sum() else float("nan")
    return Estimate(value, *ratio_interval(gained, gap))


def _cell(layout: Measured, way: Way, group: str, chosen: NDArray[np.int64]) -> Cell:
    losses, dropped = layout.shown[way][chosen], layout.dropped[chosen]
    full = None if layout.full is None else layout.full[chosen]
    return Cell(
        layout=layout.layout.name,
        way=way,
        group=group,
        windows=len(chosen),
        documents=len({layout.documents[i] for i in chosen}),
        delta=None if full is None else difference(losses, full),
        recovered=None if full is None else recovered_fraction(losses, dropped, full),
        harm=difference(losses, dropped),
    )
