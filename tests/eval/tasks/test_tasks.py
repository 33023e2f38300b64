"""What holds for every task: samples are the same everywhere, their evidence is what it says, and nothing leaks."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import CHOICES, Layout, Sample
from megacontext_vllm.eval.tasks import TASKS
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.planting import HEAD, TAIL

QUESTIONS = [name for name in TASKS if name != "continuation"]
DOCUMENTS = [name for name in QUESTIONS if name != "chat"]
LENGTHS = (4096, 65_536)
SEEDS = range(2)


def digest(samples: list[Sample]) -> str:
    """Of everything in them."""
    state = hashlib.sha256()
    for sample in samples:
        history, target = sample.history, sample.target
        words = [sample.id, sample.task, history.id, history.layout.value, sample.question, sample.answer_start]
        state.update(json.dumps([words, sample.answer, sample.candidates, sample.evidence]).encode())
        state.update(history.tokens.tobytes() + (b"" if target is None else target.tobytes()))
    return state.hexdigest()


def digests(filler: Filler, chat: ChatFormat) -> dict[str, str]:
    return {name: digest(task.samples(filler, chat, 8192, 7)) for name, task in TASKS.items()}


@pytest.fixture(params=LENGTHS)
def length(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=SEEDS)
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def test_names() -> None:
    assert list(TASKS) == [task.name for task in TASKS.values()]
    assert all(task.summary for task in TASKS.values())


def test_the_same_arguments_make_the_same_bytes_in_any_process(
    filler: Filler, chat: ChatFormat, tmp_path: Path
) -> None:
    first = digests(filler, chat)
    assert first == digests(filler, chat)
    assert len(set(first.values())) == len(first)
    np.savez(tmp_path / "stream.npz", tokens=filler.tokens, starts=filler.documents)
    script = f"""
import json, sys
import numpy as np
from transformers import AutoTokenizer
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_tasks import digests
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler
tokenizer = AutoTokenizer.from_pretrained({chat.tokenizer.name_or_path!r})
stream = np.load({str(tmp_path / "stream.npz")!r})
print(json.dumps(digests(Filler.from_tokens(stream["tokens"], tokenizer, stream["starts"]), ChatFormat(tokenizer))))
"""
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == first


@pytest.mark.parametrize("name", TASKS)
def test_seeds_and_lengths_differ(name: str, filler: Filler, chat: ChatFormat) -> None:
    task = TASKS[name]
    made = [digest(task.samples(filler, chat, length, seed)) for length in (4096, 8192) for seed in range(4)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize("name", TASKS)
def test_samples_of_a_history(name: str, filler: Filler, chat: ChatFormat, length: int, seed: int) -> None:
    samples = TASKS[name].samples(filler, chat, length, seed)
    assert len(samples) == (1 if name == "continuation" else 4)
    assert len({sample.id for sample in samples}) == len(samples)
    [history] = {sample.history for sample in samples}
    assert history.id == f"{name}/{length}/{seed}" and history.tokens.dtype == np.uint32
    assert {sample.task for sample in samples} == {name}
    if history.layout is Layout.CHAT:
        assert 0.95 * length <= len(history.tokens) <= length
    else:
        assert len(history.tokens) == length


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_two_ends_show_nothing(name: str, filler: Filler, chat: ChatFormat, length: int, seed: int) -> None:
    for sample in TASKS[name].samples(filler, chat, length, seed):
        assert sample.evidence == tuple(sorted(sample.evidence))
        assert sample.evidence[0][0] >= HEAD >= 300
        assert sample.evidence[-1][1] <= len(sample.history.tokens) - TAIL <= len(sample.history.tokens) - 2600
        ends = [sample.history.tokens[:HEAD], sample.history.tokens[-TAIL:]]
        shown = " ".join(map(chat.decode, ends)).casefold()
        assert not [candidate for candidate in sample.candidates if candidate.strip().casefold() in shown]


@pytest.mark.parametrize("name", QUESTIONS)
def test_evidence_is_whole_sentences(name: str, filler: Filler, chat: ChatFormat, length: int, seed: int) -> None:
    for sample in TASKS[name].samples(filler, chat, length, seed):
        for start, stop in sample.evidence:
            fact = chat.decode(sample.history.tokens[start:stop])
            assert re.fullmatch(r" [A-Z].*[a-z0-9]\.", fact, re.DOTALL), fact


@pytest.mark.parametrize("name", QUESTIONS)
def test_nothing_but_the_evidence_has_the_answer(
    name: str, filler: Filler, chat: ChatFormat, length: int, seed: int
) -> None:
    for sample in TASKS[name].samples(filler, chat, length, seed):
        tokens, answer = sample.history.tokens, sample.answer.strip().casefold()
        bounds = [0, *(bound for span in sample.evidence for bound in span), len(tokens)]
        others = [chat.decode(tokens[a:b]).casefold() for a, b in zip(bounds[::2], bounds[1::2])]
        shown = [chat.decode(tokens[a:b]).casefold() for a, b in sample.evidence]
        assert not [text for text in others if answer in text]
        assert [text for text in shown if answer in text]
        around = " ".join([sample.question, sample.answer_start]).casefold()
        assert name == "coverage" or not [value for value in sample.candidates if value.strip().casefold() in around]
        assert not [value for value in sample.candidates if filler.mentions(value.strip())]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_without_a_fact_are_blocks_of_the_filler(
    name: str, filler: Filler, chat: ChatFormat, length: int, is_aligned: Callable[[np.ndarray], bool]
) -> None:
    tokens = TASKS[name].samples(filler, chat, length, 0)[0].history.tokens
    other = [block for block in tokens[: len(tokens) // 32 * 32].reshape(-1, 32) if not is_aligned(block)]
    # A fact of up to 33 tokens reaches into two blocks, one of 150 into six; test_planting.py looks at each block.
    facts, reach = {
        "many_keys": (32, 2),
        "follow_up": (36, 2),
        "aggregation": (56, 2),
        "updated_fact": (16, 2),
        "coverage": (4, 6),
    }.get(name, (10, 2))
    assert len(other) <= facts * reach


@pytest.mark.parametrize("name", QUESTIONS)
def test_candidates_are_alike(name: str, filler: Filler, chat: ChatFormat, length: int, seed: int) -> None:
    for sample in TASKS[name].samples(filler, chat, length, seed):
        assert all(re.fullmatch(r" \S.*\S", candidate) for candidate in sample.candidates)
        sizes = [len(chat.encode(candidate)) for candidate in sample.candidates]
        assert max(sizes) - min(sizes) <= (1 if name == "coverage" else 0), sample.candidates


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_right_candidate_stands_equally_often_at_each_place(name: str, filler: Filler, chat: ChatFormat) -> None:
    orders = set()
    for seed in range(16):
        samples = TASKS[name].samples(filler, chat, 4096, seed)
        places = tuple(sample.candidates.index(sample.answer) for sample in samples)
        assert sorted(places) == list(range(CHOICES))
        orders.add(places)
    assert len(orders) > 4


@pytest.mark.parametrize("name", ["needle", "many_keys", "no_shared_words", "chat", "coverage", "updated_fact"])
def test_depths_are_spread_evenly(name: str, filler: Filler, chat: ChatFormat) -> None:
    length, parts = 32_768, 8
    free = length - HEAD - TAIL
    found: Counter[int] = Counter()
    for seed in range(16):
        for sample in TASKS[name].samples(filler, chat, length, seed):
            found[int((sample.evidence[-1][0] - HEAD) / free * parts)] += 1
    assert set(found) == set(range(parts)) and min(found.values()) >= 4 and max(found.values()) <= 12, found


@pytest.mark.parametrize("name", QUESTIONS)
def test_no_value_of_the_task_is_right_more_often_than_others(name: str, filler: Filler, chat: ChatFormat) -> None:
    """By rules that need no history."""
    rules: dict[str, Callable[[Sample], str]] = {
        "smallest": lambda sample: min(sample.candidates),
        "largest": lambda sample: max(sample.candidates),
        "longest": lambda sample: max(sample.candidates, key=lambda text: (len(text), text)),
        "shortest": lambda sample: min(sample.candidates, key=lambda text: (len(text), text)),
    }
    samples = [sample for seed in range(25) for sample in TASKS[name].samples(filler, chat, 4096, seed)]
    for rule, choose in rules.items():
        right = sum(choose(sample) == sample.answer for sample in samples) / len(samples)
        assert 0.09 <= right <= 0.41, (rule, right)  # 100 questions: a quarter, ± 3.7 standard errors


@pytest.mark.parametrize("name", TASKS)
def test_too_long_and_too_short_histories_are_refused(name: str, filler: Filler, chat: ChatFormat) -> None:
    with pytest.raises(EvaluationError, match="shorter histories"):
        TASKS[name].samples(filler, chat, 2 * len(filler), 0)
    if name != "continuation":
        with pytest.raises(EvaluationError, match="longer histories"):
            TASKS[name].samples(filler, chat, 2950, 0)


def test_a_million_tokens_take_less_than_two_seconds(filler: Filler, chat: ChatFormat, tokenizer: Any) -> None:
    long = Filler.from_tokens(np.tile(filler.tokens, 4), tokenizer)
    for name, task in TASKS.items():
        started = time.process_time()
        samples = task.samples(long, chat, 1_000_000, 0)
        assert time.process_time() - started < 2, name
        assert 950_000 <= len(samples[0].history.tokens) <= 1_000_000
