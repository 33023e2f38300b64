"""Chains: each sentence leads to the next, and only the last has the answer."""

import re

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.variable_tracking import VariableTracking


def test_the_evidence_leads_from_the_question_to_the_answer(filler: Filler, chat: ChatFormat) -> None:
    hops = []
    for seed in range(4):
        for sample in VariableTracking().samples(filler, chat, 8192, seed):
            links = [chat.decode(sample.history.tokens[start:stop]) for start, stop in sample.evidence]
            hops.append(len(links))
            [at] = re.findall(r"from (\w+) now", sample.question)
            for link in links[:-1]:
                assert re.search(rf"^ (What )?{at} ", link)
                at = link.rstrip(".").split()[-1]
            assert at in links[-1] and links[-1].endswith(f"{sample.answer}.")
            assert not [link for link in links[:-1] if sample.answer in link]
    assert sorted(set(hops)) == [2, 3]
