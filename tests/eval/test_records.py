"""Results on disk: resumable, and never mixed with those of another setting."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.records import Record, Results, read_results

SETTING = {"reader": "a", "corpus": "b"}
RECORD = Record(
    task="needle",
    length=4096,
    history="needle/4096/0",
    sample="needle/4096/0/0",
    method="tail",
    budget=512,
    depth=0.25,
    recall=0.0,
    correct=False,
    exact=False,
    loss=None,
    cost=512,
    prefill=560,
    index_seconds=0.0,
    select_seconds=0.0,
    read_seconds=0.5,
)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "results.jsonl"
    Results(path, SETTING).add([RECORD, replace(RECORD, budget=1024)])
    with path.open("a") as file:
        file.write('{"task": "needle", "len')  # killed in the middle of a line
    again = Results(path, SETTING)
    assert again.records == [RECORD, replace(RECORD, budget=1024)]
    assert RECORD.key in again.done and replace(RECORD, method="full").key not in again.done
    again.add([replace(RECORD, method="full")])
    assert [record.method for record in read_results(path)[1]] == ["tail", "tail", "full"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_results_of_another_setting_are_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    Results(path, SETTING).add([RECORD])
    before = path.read_bytes()
    with pytest.raises(EvaluationError, match=r"another setting \(reader differ"):
        Results(path, SETTING | {"reader": "other"})
    assert path.read_bytes() == before


@pytest.mark.parametrize("line", ["nonsense", "[]", "{}", '{"task": "needle"}'])
def test_what_is_no_result_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "results.jsonl"
    Results(path, SETTING)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(EvaluationError, match="line 2"):
        read_results(path)


def test_no_results_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="megacontext eval run"):
        read_results(tmp_path / "results.jsonl")
