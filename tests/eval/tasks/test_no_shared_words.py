"""Fact and question share no word, by the measure of the lens that looks for words."""

from typing import Any

import numpy as np
import pytest

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.base import Task
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.needle import Needle
from megacontext_vllm.eval.tasks.no_shared_words import TEMPLATES, NoSharedWords
from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.query import Query, find_query
from megacontext_vllm.focus.vocabulary import special_ids, surface_strings


@pytest.fixture(scope="module")
def lens(tokenizer: Any) -> LexicalLens:
    return LexicalLens(surface_strings(tokenizer))


def best(lens: LexicalLens, chat: ChatFormat, sought: str, *texts: str) -> float:
    """The best score of a block of the texts, when ``sought`` is looked for."""
    terms = chat.encode(sought).astype(np.int64)
    tokens = np.concatenate([chat.encode(text) for text in texts] + [chat.encode("\n" * 31)])
    tokens = np.concatenate([tokens, np.repeat(chat.encode("\n")[:1], 64)])
    query = Query(terms, np.ones(len(terms), dtype=np.float32), 0, 0)
    return float(lens.score(History(tokens, lens.spelling), query).max())


def test_there_are_many_different_ones() -> None:
    assert len(TEMPLATES) >= 24
    for column in (0, 1):
        assert len({template[column] for template in TEMPLATES}) == len(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template[2])
def test_the_lens_finds_no_word_of_the_question_in_the_fact(
    template: tuple[str, str, str], lens: LexicalLens, chat: ChatFormat
) -> None:
    fact, asked, counted = template
    stated = f" {fact.format(8203)}"
    assert best(lens, chat, stated, stated) == 1
    for sought in (f"How many {asked}?", f" How many {asked}?", f"The number of {counted} is"):
        assert best(lens, chat, sought, stated) == 0, sought
        assert best(lens, chat, sought, stated.upper(), stated.lower()) == 0, sought


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template[2])
def test_no_word_of_the_question_begins_like_one_of_the_fact(template: tuple[str, str, str]) -> None:
    common = {"the", "a", "an", "by", "of", "in", "at", "from", "for", "did", "were", "was", "to", "out", "on", "that"}
    fact, asked, counted = ({word.strip(".").casefold() for word in text.split()} - common for text in template)
    stems = {word[:4] for word in fact}
    assert not {word for word in asked | counted if word[:4] in stems}


def evidence_scores(lens: LexicalLens, task: Task, filler: Filler, chat: ChatFormat) -> list[float]:
    """The product's best score of a block of the evidence, for a few questions about 65,536 tokens."""
    found = []
    for seed in range(4):
        for sample in task.samples(filler, chat, 65_536, seed):
            prompt = chat.prompt(sample)
            query = find_query(prompt.tokens, special_ids(chat.tokenizer), lambda ids: str(chat.tokenizer.decode(ids)))
            [(start, stop)] = sample.evidence
            before = len(prompt.prefix)
            evidence = slice((before + start) // 32, (before + stop - 1) // 32 + 1)
            found.append(float(lens.score(History(prompt.tokens, lens.spelling), query)[evidence].max()))
    return found


def test_the_product_finds_needles_and_not_these(lens: LexicalLens, filler: Filler, chat: ChatFormat) -> None:
    assert min(evidence_scores(lens, Needle(), filler, chat)) == 1
    # What still scores is filler beside a fact that happens to have a word of the question, like any filler.
    found = evidence_scores(lens, NoSharedWords(), filler, chat)
    assert np.mean(np.array(found) > 0) < 0.2
