"""The tasks with the real reader: it can do them where the evidence is shown, and only guess where it is not."""

from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.eval.methods import make
from megacontext_vllm.eval.methods.base import Tools
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.readers.transformers_reader import TransformersReader
from megacontext_vllm.eval.records import Results
from megacontext_vllm.eval.run import Plan, run
from megacontext_vllm.eval.tasks import TASKS
from megacontext_vllm.eval.tasks.filler import Filler

pytestmark = pytest.mark.slow
LENGTH, BUDGET = 8192, 256


@pytest.fixture(scope="module")
def results(model_dir: Path, chat: ChatFormat, filler: Filler, tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("reading")
    tools = Tools(chat, chat.encode("\n[...]\n").tolist(), folder)
    asked = [task for task in TASKS.values() if task.name != "continuation"]
    plan = Plan(asked, [LENGTH], make(["tail", "oracle"], tools), [BUDGET], histories=2)
    made = Results(folder / "results.jsonl", {})
    run(plan, filler, chat, TransformersReader(model_dir), made, lambda *_: None)
    return made


@pytest.mark.parametrize("task", [name for name in TASKS if name != "continuation"])
def test_the_reader_can_answer_from_the_evidence(results: Results, task: str) -> None:
    right = [r.correct for r in results.records if (r.task, r.method) == (task, "oracle")]
    assert len(right) >= 8
    if not TASKS[task].for_larger_readers:
        assert np.mean([bool(one) for one in right]) >= 0.7, right


def test_without_the_evidence_it_guesses(results: Results) -> None:
    of_tail = [r for r in results.records if r.method == "tail"]
    assert len(of_tail) >= 64 and not any(r.recall for r in of_tail)
    # A quarter is chance; the seeds are fixed, and three standard deviations of 64 guesses are 0.16.
    assert 0.09 <= np.mean([bool(r.correct) for r in of_tail]) <= 0.41
    assert np.mean([bool(r.exact) for r in of_tail]) <= 0.1
