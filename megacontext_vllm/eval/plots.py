"""Summaries as pictures: accuracy against length and against budget, and where in the history evidence is found."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.records import Record
from megacontext_vllm.eval.report import MEASURES
from megacontext_vllm.eval.summary import Cell
from megacontext_vllm.eval.worth import Range

DEPTHS = 8
_MARKERS = "osD^v<>PX*hd"


def pyplot() -> Any:
    """Matplotlib without a screen. Raises EvaluationError where it is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise EvaluationError("plots need matplotlib: pip install 'megacontext-vllm[eval]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(cells: Sequence[Cell], records: Sequence[Record], folder: Path) -> list[Path]:
    """All pictures that the results have something for, as PNG files in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for measure in ("recall", "accuracy", "bits"):
        for budget in sorted({cell.budget for cell in cells}):
            drawn.append(_lines(cells, measure, "length", "budget", budget, folder))
        for length in sorted({cell.length for cell in cells}):
            drawn.append(_lines(cells, measure, "budget", "length", length, folder))
    for budget in sorted({record.budget for record in records}):
        drawn.append(_heat(records, budget, folder))
    return [path for path in drawn if path is not None]


def _lines(cells: Sequence[Cell], measure: str, along: str, fixed: str, value: int, folder: Path) -> Path | None:
    """One panel per task, one line per method; None if there are not two points to connect."""
    figure_of = MEASURES[measure][1]
    chosen = [cell for cell in cells if getattr(cell, fixed) == value and figure_of(cell) is not None]
    tasks = list(dict.fromkeys(cell.task for cell in chosen))
    if len({getattr(cell, along) for cell in chosen}) < 2:
        return None
    methods = list(dict.fromkeys(cell.method for cell in cells))
    plt = pyplot()
    columns = min(len(tasks), 3)
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.1 * rows), squeeze=False, sharey=True)
    for axis, task in zip(axes.flat, tasks):
        for place, method in enumerate(methods):
            own = [cell for cell in chosen if (cell.task, cell.method) == (task, method)]
            own.sort(key=lambda cell: int(getattr(cell, along)))
            figures = [found for cell in own if (found := figure_of(cell)) is not None]
            if not figures:
                continue
            at = [getattr(cell, along) for cell in own]
            color = plt.get_cmap("tab20")(place % 20)
            width = 2.6 if method == "megacontext" else 1.3
            style = {"marker": _MARKERS[place % 12], "ms": 4, "color": color, "lw": width, "label": method}
            axis.plot(at, [f.mean for f in figures], **style)
            axis.fill_between(at, [f.low for f in figures], [f.high for f in figures], color=color, alpha=0.08)
        if measure == "accuracy":
            axis.axhline(0.25, color="grey", lw=0.8, ls=":")
        axis.set(xscale="log", title=task, xlabel=f"{along} (tokens)")
        ticks = sorted({getattr(cell, along) for cell in chosen})
        axis.set_xticks(ticks, [_short(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.25)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel(measure)
    handles = {label: line for axis in axes.flat for line, label in zip(*axis.get_legend_handles_labels())}
    figure.suptitle(f"{measure} against {along}, {fixed} {value:,}")
    legend = {"loc": "outside lower center", "ncols": min(len(handles), 6), "frameon": False}
    figure.legend(handles.values(), handles.keys(), **legend)
    figure.set_layout_engine("constrained")
    return _save(plt, figure, folder / f"{measure}-by-{along}-{fixed}-{value}.png")


def _heat(records: Iterable[Record], budget: int, folder: Path) -> Path | None:
    """Needle position × length for each method: accuracy where it was read, else recall."""
    sums: dict[str, dict[tuple[int, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.task != "needle" or record.budget != budget or record.depth is None:
            continue
        score = record.recall if record.correct is None else float(record.correct)
        if score is not None:
            sums[record.method][min(int(record.depth * DEPTHS), DEPTHS - 1), record.length].append(score)
    lengths = sorted({length for cells in sums.values() for _, length in cells})
    if not lengths:
        return None
    plt = pyplot()
    columns = min(len(sums), 4)
    rows = -(-len(sums) // columns)
    size = (3.2 * columns, 2.9 * rows + 0.4)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, sharex=True, sharey=True)
    image = None
    for axis, (method, cells) in zip(axes.flat, sums.items()):
        table = np.full((DEPTHS, len(lengths)), np.nan)
        for (depth, length), scores in cells.items():
            table[depth, lengths.index(length)] = np.mean(scores)
        image = axis.imshow(table, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axis.set(title=method, xticks=range(len(lengths)), yticks=[0, DEPTHS - 1])
        axis.set_xticklabels([_short(length) for length in lengths], fontsize=8)
        axis.set_yticklabels(["start", "end"])
    for axis in axes.flat[len(sums) :]:
        axis.set_visible(False)
    figure.suptitle(f"needle: where it stands × length of the history, {budget:,} entries (white: none asked)")
    figure.set_layout_engine("constrained")
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _save(plt, figure, folder / f"needle-position-budget-{budget}.png")


def draw_worth(parts: Sequence[Range], knots: Sequence[tuple[float, float]], folder: Path) -> Path:
    """What blocks are worth by utility, and the line that is drawn through it."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6.4, 4.0))
    at, gains = [part.utility for part in parts], [part.gain for part in parts]
    sure = [[part.gain - part.sure[0] for part in parts], [part.sure[1] - part.gain for part in parts]]
    axis.errorbar(at, gains, yerr=np.nan_to_num(sure), fmt="o", capsize=3, label="mean, 95 % by history")
    axis.plot([utility for utility, _ in knots], [gain for _, gain in knots], label="isotonic regression")
    axis.axhline(0, color="grey", lw=0.8, ls=":")
    axis.set(xlabel="utility", ylabel="nats of the right answer that showing it saves", title="What a block is worth")
    axis.legend(frameon=False)
    figure.set_layout_engine("constrained")
    return _save(plt, figure, folder / "worth.png")


def _short(tokens: int) -> str:
    """4,096 as "4k", 1,000,000 as "1M", 512 as it is."""
    return f"{tokens / 1e6:g}M" if tokens >= 10**6 else f"{tokens // 1000}k" if tokens >= 4096 else str(tokens)


def _save(plt: Any, figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
