"""Statements that contradict each other: the evidence is the latest, in the text and by what it says."""

import re

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.updated_fact import UpdatedFact


def test_the_latest_statement_is_the_evidence(filler: Filler, chat: ChatFormat) -> None:
    for length in (4096, 16_384):
        for sample in UpdatedFact().samples(filler, chat, length, 3):
            text = chat.decode(sample.history.tokens)
            [club] = re.findall(r"the (\w+) club", sample.question)
            stated = re.findall(rf"In week (\d+) the meeting point of the {club} club moved to the ([a-z ]+)\.", text)
            weeks = [int(week) for week, _ in stated]
            assert len(stated) == 4 and weeks == sorted(set(weeks))
            assert {f" {place}" for _, place in stated} == set(sample.candidates)
            assert f" {stated[-1][1]}" == sample.answer
            [(start, stop)] = sample.evidence
            assert sample.answer in chat.decode(sample.history.tokens[start:stop])
