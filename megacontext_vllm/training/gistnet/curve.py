"""The learning curve of a run: ``curve.jsonl``, a line an event, and ``curve.png``, drawn anew while it grows."""

import json
import os
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Curve:
    """Rows have ``step`` and ``tokens``; those of training a ``loss``, those of validation a ``validation``."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "curve.jsonl"
        self.picture = folder / "curve.png"

    def rows(self) -> list[Row]:
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        rows = []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:
                break  # written half when the process was killed; what follows is written again
        return rows

    def cut(self, step: int) -> None:
        """Forget what came after ``step``: training goes on from there."""
        kept = [row for row in self.rows() if row["step"] <= step]
        new = self.file.with_suffix(".new")
        new.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(new, self.file)

    def add(self, row: Row) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def draw(self) -> bool:
        """Returns whether there is a picture: not without matplotlib."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return False
        rows = self.rows()
        figure = Figure(figsize=(8, 7), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True)
        losses = [row for row in rows if "loss" in row]
        above.plot([row["tokens"] for row in losses], [row["loss"] for row in losses], linewidth=1)
        above.set_ylabel("loss in training")
        checks = [row for row in rows if "validation" in row]
        for name in checks[-1]["validation"] if checks else ():
            values = [row["validation"][name]["recovered"] for row in checks]
            below.plot([row["tokens"] for row in checks], values, marker="o", markersize=3, label=name)
        below.axhline(0, color="grey", linewidth=0.8)
        below.set_ylabel("recovered fraction in validation")
        below.set_xlabel("tokens seen")
        if checks:
            below.legend()
        new = self.picture.with_suffix(".new")
        figure.savefig(new, format="png", dpi=100)
        os.replace(new, self.picture)
        return True
