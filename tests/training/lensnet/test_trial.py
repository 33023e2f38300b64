"""The questions by which a LensNet is judged, and that the judgement is right."""

import re

import numpy as np
import pytest

from megacontext_vllm.eval.tasks.no_shared_words import TEMPLATES
from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.nets.lensnet import LensNet, load, regular_forms
from megacontext_vllm.training.lensnet.questions import QUESTIONS
from megacontext_vllm.training.lensnet.trial import Trial, loss


def content(text: str) -> set[str]:
    words = set(re.findall(r"[a-z]+", text.lower())) - STOP_WORDS
    return words | {form for word in words for form in regular_forms(word)}


@pytest.mark.parametrize(("fact", "asked"), QUESTIONS)
def test_fact_and_question_share_no_word(fact: str, asked: str) -> None:
    assert fact.count("{}") == 1 and asked.endswith("?")
    assert not content(fact) & content(asked)


def test_none_is_asked_in_the_evaluation() -> None:
    evaluated = [(content(fact), content(asked)) for fact, asked, _ in TEMPLATES]
    for fact, asked in QUESTIONS:
        for other_fact, other_asked in evaluated:
            assert not (content(fact) & other_fact and content(asked) & other_asked), (fact, asked)


@pytest.fixture(scope="module")
def trial(text: str) -> Trial:
    return Trial.of([text], 60_000)


def test_facts_are_where_they_are_said_to_be(trial: Trial) -> None:
    assert trial.tokens.dtype == np.uint32 and 60_000 < len(trial.tokens) < 62_000
    for (first, last), (fact, _) in zip(trial.facts, QUESTIONS, strict=True):
        shown = "".join(trial.vocabulary[i] for i in trial.tokens[first * 32 : (last + 1) * 32])
        assert re.search(fact.format(r"\d{4}"), shown), (fact, shown)
    again = Trial.of(["one two three"], 60_000)
    assert len(again.facts) == len(QUESTIONS), "a text that is too short is used whole"


def test_ranks_tell_nets_apart(trial: Trial) -> None:
    shipped = load()
    known = trial.ranks(shipped)
    assert known.shape == (len(QUESTIONS),) and known.min() >= 0
    shuffled = shipped.vectors[np.random.default_rng(0).permutation(len(shipped.words))]
    unknown = trial.ranks(LensNet(shipped.words, shuffled, shipped.temperature, shipped.weight))
    assert loss(known) < 0.5 * loss(unknown)
    assert (known < 16).mean() > 0.6 > 0.3 > (unknown < 16).mean()


def test_a_net_that_knows_nothing_finds_nothing(trial: Trial) -> None:
    empty = LensNet(("qqq",), np.ones((1, 1), dtype=np.float32), 0.1, 100.0)
    assert (trial.ranks(empty) >= len(trial.tokens) // 32 - 2).all(), "all blocks alike are no find"


def test_loss() -> None:
    assert loss(np.array([0, 0])) == 0 and loss(np.array([1, 3])) == 1.5
