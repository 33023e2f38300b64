"""The evaluation's loop: every question through every method at every budget, to one reader."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megacontext_vllm.eval.context import Context
from megacontext_vllm.eval.methods.base import Cheat, Method, View
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.readers.base import Reader
from megacontext_vllm.eval.records import Record, Results
from megacontext_vllm.eval.sample import Sample
from megacontext_vllm.eval.tasks.base import Task
from megacontext_vllm.eval.tasks.filler import Filler

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What is to be measured. ``histories``: per task and length; each has a few questions."""

    tasks: Sequence[Task]
    lengths: Sequence[int]
    methods: Sequence[Method]
    budgets: Sequence[int]
    histories: int


def run(
    plan: Plan, filler: Filler, chat: ChatFormat, reader: Reader | None, results: Results, progress: Progress
) -> None:
    """Measure what ``results`` does not hold yet.

    ``reader`` None: only what was shown (recall), nobody reads it. ``progress`` gets (done, total) histories. The first
    history of every task and length comes first, so that a run that is cut off has something of everything.
    """
    work = [(seed, length, task) for seed in range(plan.histories) for length in plan.lengths for task in plan.tasks]
    for done, (seed, length, task) in enumerate(work):
        progress(done, len(work))
        for records in measure_history(plan, task.samples(filler, chat, length, seed), chat, reader, results, length):
            results.add(records)
    progress(len(work), len(work))


def measure_history(
    plan: Plan, samples: list[Sample], chat: ChatFormat, reader: Reader | None, results: Results, length: int
) -> Iterator[list[Record]]:
    """Yields the records of each method for questions that share one history of nominally ``length`` tokens."""
    prompts = [chat.prompt(sample) for sample in samples]
    for method in plan.methods:
        todo = [
            (sample, prompt, budget)
            for budget in plan.budgets
            for sample, prompt in zip(samples, prompts, strict=True)
            if (sample.id, method.name, budget) not in results.done
            and method.fits(len(prompt.history), budget)
            and (sample.evidence or not isinstance(method, Cheat))
        ]
        if not todo:
            continue
        started = time.perf_counter()
        index = method.index(todo[0][1].history)
        index_seconds = time.perf_counter() - started
        yield [measure(method, index, *what, length, index_seconds, reader) for what in todo]


def measure(
    method: Method,
    index: Any,
    sample: Sample,
    prompt: Prompt,
    budget: int,
    length: int,
    index_seconds: float,
    reader: Reader | None,
) -> Record:
    """One question, one method, one budget."""
    started = time.perf_counter()
    context = select(method, View(prompt, index), budget, sample)
    select_seconds = time.perf_counter() - started
    assert context.cost <= budget or not method.within_budget, f"{method.name} spends {context.cost} of {budget}"
    correct = exact = loss = None
    prefill, read_seconds = context.cost + prompt.overhead, 0.0
    if reader is not None and sample.target is not None:
        started = time.perf_counter()
        loss = reader.continue_text(prompt, context, sample)
        read_seconds = time.perf_counter() - started
    elif reader is not None:
        reading = reader.ask(prompt, context, sample)
        correct = None if reading.choice is None else sample.candidates[reading.choice] == sample.answer
        exact, prefill, read_seconds = reading.exact, reading.prefill, reading.seconds
    middle = [(start + stop) / 2 for start, stop in sample.evidence]
    return Record(
        task=sample.task,
        length=length,
        history=sample.history.id,
        sample=sample.id,
        method=method.name,
        budget=budget,
        depth=round(sum(middle) / len(middle) / len(sample.history.tokens), 4) if middle else None,
        recall=context.recall(sample.evidence) if sample.evidence else None,
        correct=correct,
        exact=exact,
        loss=loss,
        cost=context.cost,
        prefill=prefill,
        index_seconds=round(index_seconds, 4),
        select_seconds=round(select_seconds, 4),
        read_seconds=round(read_seconds, 4),
    )


def select(method: Method, view: View, budget: int, sample: Sample) -> Context:
    """What the method shows; the only place where anybody is told the evidence."""
    if isinstance(method, Cheat):
        return method.select_told(view, budget, sample.evidence)
    return method.select(view, budget)
