"""Summaries as tables: rich for a terminal, Markdown for a document."""

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table

from megacontext_vllm.eval.methods import METHODS
from megacontext_vllm.eval.summary import ALL, Cell, Figure

MEASURES: dict[str, tuple[str, Callable[[Cell], Figure | None]]] = {
    "recall": ("share of the evidence's tokens shown raw", lambda cell: cell.recall),
    "accuracy": ("right candidate of four (guessing: 0.25)", lambda cell: cell.correct),
    "exact": ("greedy answer begins with the right one", lambda cell: cell.exact),
    "of oracle": ("accuracy divided by the oracle's", lambda cell: cell.of_oracle),
    "bits": ("bits per token of the continuation (smaller is better)", lambda cell: cell.bits),
}


def grid(cells: Sequence[Cell], measure: str, budget: int) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one measure at one budget: tasks and lengths downwards, methods across."""
    chosen = [cell for cell in cells if cell.budget == budget and MEASURES[measure][1](cell) is not None]
    # Several folders put together have them in any order; methods of somebody's own come last.
    order = [*METHODS, *(cell.method for cell in chosen)]
    methods = sorted({cell.method for cell in chosen}, key=order.index)
    places = sorted({(cell.task, cell.length) for cell in chosen}, key=lambda at: (_order(cells)[at[0]], at[1]))
    found = {(cell.task, cell.length, cell.method): cell for cell in chosen}
    rows = []
    for task, length in places:
        of_place = [found.get((task, length, method)) for method in methods]
        questions = max(cell.questions for cell in of_place if cell)
        shown = [_text(MEASURES[measure][1](cell)) if cell else "–" for cell in of_place]
        rows.append([task, "all" if length == ALL else f"{length:,}", str(questions), *shown])
    return ["task", "length", "n", *methods], rows


def _order(cells: Sequence[Cell]) -> dict[str, int]:
    return {task: place for place, task in enumerate(dict.fromkeys(cell.task for cell in cells))}


def _text(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    half = max(figure.high - figure.mean, figure.mean - figure.low)
    return f"{figure.mean:.2f}" if half != half else f"{figure.mean:.2f} ±{half:.2f}"  # nan: one history tells nothing


def tables(cells: Sequence[Cell]) -> list[Table]:
    """Every measure at every budget, as rich tables."""
    made = []
    for measure, (meaning, _) in MEASURES.items():
        for budget in sorted({cell.budget for cell in cells}):
            head, rows = grid(cells, measure, budget)
            if not rows:
                continue
            table = Table(*head, title=f"{measure} at {budget:,} entries: {meaning}", box=box.SIMPLE_HEAD)
            for row in rows:
                table.add_row(*row)
            made.append(table)
    return made


def markdown(cells: Sequence[Cell]) -> str:
    """The same tables for a document; ± is the farther end of the 95 % interval."""
    parts = []
    for measure, (meaning, _) in MEASURES.items():
        for budget in sorted({cell.budget for cell in cells}):
            head, rows = grid(cells, measure, budget)
            if not rows:
                continue
            lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * 2 + ["--:"] * (len(head) - 2), *rows]]
            title, text = f"### {measure}, {budget:,} entries\n", f"{meaning[0].upper()}{meaning[1:]}.\n"
            parts.append("\n".join([title, text, *lines]))
    return "\n\n".join(parts) + "\n"


def costs(cells: Sequence[Cell]) -> Table:
    """What each method takes: entries and seconds, by length and budget, over all tasks."""
    table = Table(
        "method", "length", "budget", "prefill", "index, once", "select", "read", title="Costs", box=box.SIMPLE_HEAD
    )
    keys = sorted({(cell.method, cell.length, cell.budget) for cell in cells})
    for method, length, budget in keys:
        group = [cell for cell in cells if (cell.method, cell.length, cell.budget) == (method, length, budget)]

        def mean(of: Callable[[Cell], float], group: list[Cell] = group) -> float:
            return sum(map(of, group)) / len(group)

        table.add_row(
            method,
            "all" if length == ALL else f"{length:,}",
            f"{budget:,}",
            f"{mean(lambda cell: cell.prefill):,.0f}",
            f"{mean(lambda cell: cell.index_seconds):.2f} s",
            f"{mean(lambda cell: cell.select_seconds) * 1e3:.0f} ms",
            f"{mean(lambda cell: cell.read_seconds):.2f} s",
        )
    return table
