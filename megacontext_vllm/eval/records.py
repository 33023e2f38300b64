"""Results on disk: one JSON line per question, method and budget, so that a run can be cut off and taken up again."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import EvaluationError

RECIPE = 1
"""Goes up when tasks, methods or measures change so that old results are no longer comparable."""


@dataclass(frozen=True)
class Record:
    """What came of one question. ``history`` names the histories that questions share.

    depth     where the evidence stands, 0 at the start of the history to 1 at its end; None for a continuation.
    recall    share of the evidence's tokens that were raw in the context.
    correct   the reader preferred the right candidate; ``exact``: its greedy answer began with the right one. None
              where it was not asked.
    loss      mean NLL of a continuation, nats per token.
    cost      entries spent on the history; ``prefill``: entries prefilled in all.
    """

    task: str
    length: int
    history: str
    sample: str
    method: str
    budget: int
    depth: float | None
    recall: float | None
    correct: bool | None
    exact: bool | None
    loss: float | None
    cost: int
    prefill: int
    index_seconds: float
    select_seconds: float
    read_seconds: float

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes it unique within one run."""
        return self.sample, self.method, self.budget


class Results:
    """The results of one setting, in a file that only grows.

    ``setting``: what must be equal for results to be compared.
    Raises EvaluationError if the file holds results of another setting.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        setting = json.loads(json.dumps(setting | {"recipe": RECIPE}))
        found, self.records = read_results(path) if path.exists() and path.stat().st_size else (None, [])
        cut_torn_line(path)
        if found is None:
            append_rows(path, [{"setting": setting}])
        elif found != setting:
            other = [name for name in {*found, *setting} if found.get(name) != setting.get(name)]
            raise EvaluationError(
                f"{path} holds results of another setting ({', '.join(sorted(other))} differ): "
                "give another --out, or move that file away"
            )
        self.done = {record.key for record in self.records}

    def add(self, records: Iterable[Record]) -> None:
        """Append results; they are there after a crash of this process."""
        new = list(records)
        append_rows(self.path, [asdict(record) for record in new])
        self.records += new
        self.done |= {record.key for record in new}


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add a JSON line for each of ``rows``; they are there after a crash of this process."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def cut_torn_line(path: Path) -> None:
    """A killed process may have left half a line."""
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)


def read_results(path: Path) -> tuple[dict[str, Any] | None, list[Record]]:
    """The setting and the records of a file; a half-written last line is passed over. Raises EvaluationError."""
    names = {field.name for field in fields(Record)}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot read {path}: {error.strerror}. Run: megacontext eval run") from error
    setting = None
    records = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            if number == 1:
                setting = row["setting"]
            else:
                records.append(Record(**{name: row[name] for name in names}))
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path}, line {number}: not a result of an evaluation ({error})") from error
    return setting, records
