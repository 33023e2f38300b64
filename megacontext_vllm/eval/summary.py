"""From records to what is reported: one cell per task, length, budget and method, with intervals."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import log

import numpy as np

from megacontext_vllm.eval.bootstrap import interval, ratio_interval
from megacontext_vllm.eval.records import Record

ORACLE = "oracle"
ALL = 0
"""Length of cells that are over all lengths."""


@dataclass(frozen=True)
class Figure:
    """A mean with its 95 % bootstrap interval; histories, not questions, are resampled."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Cell:
    """Everything about one method in one setting. None: not measured there.

    questions, histories  how many.
    recall, correct, exact  shares; of questions for the last two.
    of_oracle  ``correct`` divided by the oracle's, on the same questions.
    bits     per token of a continuation.
    prefill  entries, mean. select_seconds, read_seconds: medians; index_seconds: once per history.
    """

    task: str
    length: int
    budget: int
    method: str
    questions: int
    histories: int
    recall: Figure | None
    correct: Figure | None
    exact: Figure | None
    of_oracle: Figure | None
    bits: Figure | None
    prefill: float
    index_seconds: float
    select_seconds: float
    read_seconds: float


def summarise(records: Iterable[Record]) -> list[Cell]:
    """One cell per task, length, budget and method, in the order of their first records."""
    groups: dict[tuple[str, int, int, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.task, record.length, record.budget, record.method].append(record)
    oracles = {key[:3]: group for key, group in groups.items() if key[3] == ORACLE}
    return [_cell(group, oracles.get(key[:3], [])) for key, group in groups.items()]


def pool_lengths(records: Iterable[Record]) -> list[Record]:
    """The records as if of one length, ``ALL``: more histories to a cell, where length makes no difference."""
    return [replace(record, length=ALL) for record in records]


def _cell(group: list[Record], oracle: list[Record]) -> Cell:
    first = group[0]
    return Cell(
        first.task,
        first.length,
        first.budget,
        first.method,
        questions=len(group),
        histories=len({record.history for record in group}),
        recall=_figure([(r.history, r.recall) for r in group]),
        correct=_figure([(r.history, r.correct) for r in group]),
        exact=_figure([(r.history, r.exact) for r in group]),
        of_oracle=_ratio(group, oracle),
        bits=_figure([(r.history, None if r.loss is None else r.loss / log(2)) for r in group]),
        prefill=float(np.mean([r.prefill for r in group])),
        index_seconds=float(np.median([r.index_seconds for r in group])),
        select_seconds=float(np.median([r.select_seconds for r in group])),
        read_seconds=float(np.median([r.read_seconds for r in group])),
    )


def _figure(values: list[tuple[str, float | bool | None]]) -> Figure | None:
    known = [(cluster, float(value)) for cluster, value in values if value is not None]
    if not known:
        return None
    clusters = [cluster for cluster, _ in known]
    numbers = [value for _, value in known]
    return Figure(float(np.mean(numbers)), *interval(numbers, clusters))


def _ratio(group: list[Record], oracle: list[Record]) -> Figure | None:
    """Accuracy over the oracle's, on the questions that both were asked."""
    best = {record.sample: record.correct for record in oracle if record.correct is not None}
    asked = [record for record in group if record.correct is not None and record.sample in best]
    pairs = [(record.history, float(record.correct or 0), float(best[record.sample])) for record in asked]
    if not pairs or not sum(pair[2] for pair in pairs):
        return None
    clusters, ours, theirs = (list(column) for column in zip(*pairs, strict=True))
    return Figure(sum(ours) / sum(theirs), *ratio_interval(ours, theirs, clusters))
