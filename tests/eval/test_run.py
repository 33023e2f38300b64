"""The loop: real tasks and methods; a reader that answers if, and only if, the answer is in what it is shown."""

from dataclasses import replace
from pathlib import Path

import pytest

from megacontext_vllm.eval.context import Context, Raw
from megacontext_vllm.eval.methods import make
from megacontext_vllm.eval.methods.base import Method, Tools, View
from megacontext_vllm.eval.methods.tail import Tail
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.readers.base import Reader, Reading
from megacontext_vllm.eval.records import Results
from megacontext_vllm.eval.run import Plan, run
from megacontext_vllm.eval.sample import Sample
from megacontext_vllm.eval.summary import summarise
from megacontext_vllm.eval.tasks import TASKS
from megacontext_vllm.eval.tasks.filler import Filler


class LiteralReader(Reader):
    """Takes the only candidate that stands behind the answer's start in the raw text; else the first of all."""

    name = "literal"

    def __init__(self, chat: ChatFormat) -> None:
        self.chat = chat
        self.asked = 0

    def ask(self, prompt: Prompt, context: Context, sample: Sample) -> Reading:
        self.asked += 1
        shown = " ".join(self.chat.decode(prompt.history[start:stop]) for start, stop in context.raw)
        found = [k for k, end in enumerate(sample.candidates) if sample.answer_start + end in shown]
        choice = found[0] if len(found) == 1 else 0
        right = len(found) == 1 and sample.candidates[choice] == sample.answer
        return Reading(choice, right, None, (), context.cost + prompt.overhead, 0.1)


def results_of(folder: Path) -> Results:
    return Results(folder / "results.jsonl", {"reader": "literal"})


def test_what_is_shown_decides_what_is_read(chat: ChatFormat, filler: Filler, tools: Tools, tmp_path: Path) -> None:
    methods = make(["tail", "megacontext", "oracle"], tools)
    plan = Plan([TASKS["needle"]], [8192, 32768], methods, [512, 1024], histories=2)
    results, told = results_of(tmp_path), []
    run(plan, filler, chat, LiteralReader(chat), results, lambda done, total: told.append((done, total)))
    assert told[0] == (0, 4) and told[-1] == (4, 4)
    cells = {(cell.length, cell.budget, cell.method): cell for cell in summarise(results.records)}
    assert len(cells) == 2 * 2 * 3
    for (_, budget, method), cell in cells.items():
        assert cell.recall is not None and cell.exact is not None
        shown = method in ("megacontext", "oracle")  # the end holds no evidence, by the tasks' promise
        assert (cell.recall.mean, cell.exact.mean) == (float(shown), float(shown)), (method, budget)
        assert all(r.cost <= r.budget for r in results.records)
        assert all(r.prefill > r.cost for r in results.records)


def test_a_second_run_measures_only_what_is_missing(
    chat: ChatFormat, filler: Filler, tools: Tools, tmp_path: Path
) -> None:
    plan = Plan([TASKS["needle"]], [8192], make(["tail", "oracle"], tools), [512], histories=1)
    first = LiteralReader(chat)
    run(plan, filler, chat, first, results_of(tmp_path), lambda *_: None)
    wider = replace(plan, budgets=[512, 1024], histories=2)
    second, results = LiteralReader(chat), results_of(tmp_path)
    run(wider, filler, chat, second, results, lambda *_: None)
    assert first.asked + second.asked == len(results.records) == 4 * first.asked
    third = LiteralReader(chat)
    run(wider, filler, chat, third, results_of(tmp_path), lambda *_: None)
    assert third.asked == 0


def test_runs_are_equal_to_the_digit(chat: ChatFormat, filler: Filler, tools: Tools, tmp_path: Path) -> None:
    plan = Plan([TASKS["needle"]], [8192], make(["bm25_32", "megacontext"], tools), [512], histories=1)
    both = []
    for folder in ("one", "two"):
        run(plan, filler, chat, LiteralReader(chat), results_of(tmp_path / folder), lambda *_: None)
        timeless = [
            replace(r, index_seconds=0, select_seconds=0, read_seconds=0) for r in results_of(tmp_path / folder).records
        ]
        both.append(timeless)
    assert both[0] == both[1]


def test_a_method_that_overspends_is_caught(chat: ChatFormat, filler: Filler, tools: Tools, tmp_path: Path) -> None:
    class Greedy(Tail):
        name = "greedy"

        def select(self, view: View, budget: int) -> Context:
            return Context((Raw(0, budget + 1),), ())

    plan = Plan([TASKS["needle"]], [8192], [Greedy(tools)], [512], histories=1)
    with pytest.raises(AssertionError, match="greedy spends 513"):
        run(plan, filler, chat, None, results_of(tmp_path), lambda *_: None)


def test_nobody_but_the_oracle_is_told_the_evidence(
    chat: ChatFormat, filler: Filler, tools: Tools, tmp_path: Path
) -> None:
    """Everything that a method can reach from what it is given, at any depth, is free of the sample's answer."""
    seen: list[object] = []

    class Curious(Method):
        name, summary = "curious", "looks at all that it gets"

        def select(self, view: View, budget: int) -> Context:
            seen.extend([vars(view), vars(view.prompt), vars(self)])
            return Context((), ())

    plan = Plan([TASKS["needle"]], [8192], [Curious(tools)], [512], histories=1)
    run(plan, filler, chat, None, results_of(tmp_path), lambda *_: None)
    (sample, *_) = TASKS["needle"].samples(filler, chat, 8192, 0)
    assert seen and not any(sample.answer.strip() in repr(thing) for thing in seen)
    assert not any(name in thing for thing in seen for name in ("evidence", "answer", "candidates", "sample"))  # type: ignore[operator]
