"""Prompts that were scored before, while their answers are planned for again."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from megacontext_vllm.engine.asked import Asked
from megacontext_vllm.focus.focus import Focus, Scored
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.text_index import TextIndex

WORDS = [f" word{i}" for i in range(900)]


class Counting(Focus):
    """How many prompts were scored, on any focus."""

    scored = 0

    whole = True

    def score(self, tokens: npt.NDArray[np.uint32], index: TextIndex | None = None) -> Scored:
        Counting.scored += 1
        return replace(super().score(tokens, index), whole=Counting.whole)


@pytest.fixture
def focus(monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(Counting, "scored", 0)
    monkeypatch.setattr(Counting, "whole", True)
    return Counting(LexicalLens(WORDS), frozenset(), lambda ids: "".join(WORDS[i] for i in ids), 64, 128, gap_ids=(1,))


def prompt(seed: int) -> npt.NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 900, 3200).astype(np.uint32)


def test_a_prompt_is_scored_once_while_it_is_answered(focus: Counting) -> None:
    asked = Asked(focus)
    tokens = prompt(0)
    expected = focus.score(tokens)
    for answer in (1, 32, 64):
        scored = asked.score("a", np.append(tokens, prompt(1)[:answer])[:-answer])
        assert scored.query.start == expected.query.start and scored.length == len(tokens)
        assert np.array_equal(scored.utility, expected.utility)
    assert focus.scored == 2


def test_another_prompt_or_namespace_is_scored_anew(focus: Counting) -> None:
    asked = Asked(focus)
    asked.score("a", prompt(0))
    asked.score("b", prompt(0))
    other = prompt(0)
    other[-1] ^= 1
    assert not np.array_equal(asked.score("a", other).query.terms, asked.score("a", prompt(0)).query.terms)
    assert focus.scored == 3


def test_the_least_recently_used_goes_first_and_the_last_stays(focus: Counting) -> None:
    asked = Asked(focus, max_blocks=1250)  # two of 100, and what each takes besides
    for seed in (0, 1, 0, 2):
        asked.score("a", prompt(seed))
    assert focus.scored == 3
    asked.score("a", prompt(0))
    assert focus.scored == 3
    asked.score("a", prompt(1))
    assert focus.scored == 4
    small = Asked(focus, max_blocks=1)
    small.score("a", prompt(0))
    small.score("a", prompt(0))
    assert focus.scored == 5


def test_what_a_lens_failed_at_is_tried_again(focus: Counting) -> None:
    asked = Asked(focus)
    Counting.whole = False
    asked.score("a", prompt(0))
    Counting.whole = True
    for _ in range(3):
        assert asked.score("a", prompt(0)).whole
    assert focus.scored == 2


def test_the_shortest_prompts_are_forgotten_too(focus: Counting) -> None:
    asked = Asked(focus, max_blocks=512 * 10)
    for seed in range(12):
        asked.score("a", prompt(seed)[:20])
    asked.score("a", prompt(0)[:20])
    assert focus.scored == 13
