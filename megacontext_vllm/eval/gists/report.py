"""What was measured of gists, as tables and as JSON."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.table import Table

from megacontext_vllm.eval.gists.measure import Measured, Way
from megacontext_vllm.eval.gists.showing import Positions
from megacontext_vllm.eval.gists.summary import ALL, Cell, Estimate, summarise


@dataclass(frozen=True, eq=False)
class GistReport:
    """``model``: the reader's name."""

    model: str
    seed: int
    measured: tuple[Measured, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, model: str, seed: int, measured: Sequence[Measured]) -> "GistReport":
        return cls(model, seed, tuple(measured), tuple(summarise(measured)))

    def cell(self, layout: str, way: Way, group: str = ALL) -> Cell | None:
        """None if it was not measured."""
        wanted = (layout, way, group)
        return next((cell for cell in self.cells if (cell.layout, cell.way, cell.group) == wanted), None)

    @property
    def ways(self) -> list[Way]:
        """In the order of measurement."""
        return list(dict.fromkeys(cell.way for cell in self.cells))

    def to_json(self) -> dict[str, Any]:
        """Estimates, and the loss of every window from which they come. What is not a number is None."""
        layouts = [
            {
                **asdict(one.layout),
                "full": None if one.full is None else one.full.tolist(),
                "dropped": one.dropped.tolist(),
                "documents": list(one.documents),
                "shown": [{**_way(way), "losses": losses.tolist()} for way, losses in one.shown.items()],
            }
            for one in self.measured
        ]
        cells = [
            {**_finite(asdict(cell)), **_way(cell.way), "group": cell.group or "all", "harmful": cell.harmful}
            for cell in self.cells
        ]
        for cell in cells:
            del cell["way"]
        return {"model": self.model, "seed": self.seed, "cells": cells, "layouts": layouts}


def tables(report: GistReport) -> list[Table]:
    """What gists recover, whether they do harm, and both for each source; only what was measured."""
    full = [one for one in report.measured if one.full is not None]
    rest = [one for one in report.measured if one.full is None]
    found = []
    if full:
        found.append(_table(report, "What gists recover: 0 as if dropped, 1 as if shown whole", full, ALL, _recovered))
    if rest:
        found.append(_table(report, "NLL@64 minus that of dropping: above 0 does harm", rest, ALL, _harm))
    for one in full:
        found.append(_groups(report, one))
    return found


def _table(
    report: GistReport, title: str, layouts: Sequence[Measured], group: str, show: Callable[[Cell], str]
) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("gists")
    for one in layouts:
        table.add_column(f"{one.layout.name}\nN = {len(one.dropped)}", justify="right")
    if all(one.full is not None for one in layouts):
        table.add_row("NLL of the whole → dropped", *map(_ends, layouts))
    for way in report.ways:
        shown = [report.cell(one.layout.name, way, group) for one in layouts]
        table.add_row(_name(way), *("–" if cell is None else show(cell) for cell in shown))
    return table


def _groups(report: GistReport, one: Measured) -> Table:
    table = Table(
        title=f"{one.layout.name}: NLL@64 minus that of dropping, by source", box=box.SIMPLE_HEAD, title_justify="left"
    )
    table.add_column("gists")
    groups = sorted(set(one.sources))
    for group in groups:
        table.add_column(f"{group}\nN = {one.sources.count(group)}", justify="right")
    for way in one.shown:
        cells = [report.cell(one.layout.name, way, group) for group in groups]
        table.add_row(_name(way), *(_harm(cell) for cell in cells if cell is not None))
    return table


def _ends(one: Measured) -> str:
    assert one.full is not None
    return f"{one.full.mean():.3f} → {one.dropped.mean():.3f}"


def _recovered(cell: Cell) -> str:
    assert cell.recovered is not None and cell.delta is not None
    return f"{_estimate(cell.recovered, 2)}\nΔNLL {cell.delta.value:+.3f}"


def _harm(cell: Cell) -> str:
    text = _estimate(cell.harm, 3)
    return f"[red]{text}[/red]" if cell.harmful else text


def _estimate(estimate: Estimate, digits: int) -> str:
    ends = (estimate.low, estimate.high)
    between = "" if any(map(math.isnan, ends)) else " \\[" + ", ".join(f"{end:+.{digits}f}" for end in ends) + "]"
    return f"{estimate.value:+.{digits}f}{between}"


def _name(way: Way) -> str:
    return way.maker if way.positions is Positions.COMPACT else f"{way.maker} (positions: {way.positions.value})"


def _way(way: Way) -> dict[str, str]:
    return {"maker": way.maker, "positions": way.positions.value}


def _finite(value: Any) -> Any:
    """JSON has no word for nan."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
