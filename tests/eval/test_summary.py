"""From records to cells, on numbers worked by hand."""

import math
from dataclasses import replace

import pytest

from megacontext_vllm.eval.records import Record
from megacontext_vllm.eval.report import grid, markdown
from megacontext_vllm.eval.summary import pool_lengths, summarise

BASE = Record("needle", 4096, "h0", "s0", "tail", 512, 0.5, 0.0, False, False, None, 512, 560, 0.0, 0.0, 0.5)


def records(method: str, correct: list[bool], recall: float) -> list[Record]:
    """Two questions per history."""
    return [
        replace(BASE, history=f"h{k // 2}", sample=f"s{k}", method=method, correct=right, recall=recall, exact=right)
        for k, right in enumerate(correct)
    ]


def test_means_ratios_and_intervals() -> None:
    all_of_it = records("oracle", [True, True, True, False], 1.0) + records("tail", [False, True, False, False], 0.5)
    oracle, tail = summarise(all_of_it)
    assert (oracle.questions, oracle.histories) == (4, 2)
    assert oracle.correct is not None and oracle.correct.mean == 0.75
    assert (oracle.correct.low, oracle.correct.high) == (0.5, 1.0)  # either history twice: 1.0 and 0.5
    assert tail.correct is not None and tail.correct.mean == 0.25
    assert tail.of_oracle is not None and tail.of_oracle.mean == pytest.approx(1 / 3)
    assert tail.recall is not None and (tail.recall.mean, tail.recall.low, tail.recall.high) == (0.5, 0.5, 0.5)
    assert oracle.of_oracle is not None and oracle.of_oracle.mean == oracle.of_oracle.low == 1.0


def test_the_ratio_to_the_oracle_is_over_the_questions_that_both_were_asked() -> None:
    told = records("oracle", [True, False, True, True], 1.0)
    partial = records("tail", [True, True, False, False], 0.0)[:2]
    tail = summarise(told + partial)[1]
    assert tail.of_oracle is not None and tail.of_oracle.mean == 2.0


def test_a_continuation_is_counted_in_bits() -> None:
    text = replace(BASE, task="continuation", depth=None, recall=None, correct=None, exact=None, loss=math.log(8))
    (cell,) = summarise([text])
    assert cell.bits is not None and cell.bits.mean == pytest.approx(3.0)
    assert cell.correct is None and cell.recall is None and cell.of_oracle is None


def test_lengths_can_be_pooled() -> None:
    short, long = records("tail", [True] * 4, 1.0), records("tail", [False] * 4, 0.0)
    long = [replace(r, length=65536, history=f"long {r.history}", sample=f"long {r.sample}") for r in long]
    (cell,) = summarise(pool_lengths(short + long))
    assert (cell.questions, cell.histories) == (8, 4)
    assert cell.correct is not None and (cell.correct.mean, cell.correct.low, cell.correct.high) == (0.5, 0.0, 1.0)
    assert grid([cell], "accuracy", 512)[1] == [["needle", "all", "8", "0.50 ±0.50"]]


def test_tables_show_what_was_not_measured_as_such() -> None:
    cells = summarise(records("oracle", [True] * 4, 1.0) + records("tail", [False] * 4, 0.0)[:2])
    head, rows = grid(cells, "accuracy", 512)
    assert head == ["task", "length", "n", "tail", "oracle"], "whatever came first"
    assert rows == [["needle", "4,096", "4", "0.00", "1.00 ±0.00"]]  # one history has no interval
    assert "| needle | 4,096 | 4 | 0.00 | 1.00 ±0.00 |" in markdown(cells)
    assert "bits" not in markdown(cells)
