"""How often things are stated."""

from collections import Counter

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.aggregation import Aggregation
from megacontext_vllm.eval.tasks.filler import Filler


def test_the_right_thing_is_stated_most_often_by_far(filler: Filler, chat: ChatFormat) -> None:
    for length, expected in ((4096, [6, 2, 1, 1]), (32_768, [8, 3, 2, 1])):
        for sample in Aggregation().samples(filler, chat, length, 2):
            stated = [chat.decode(sample.history.tokens[start:stop]) for start, stop in sample.evidence]
            counts = Counter({thing: sum(thing in text for text in stated) for thing in sample.candidates})
            assert [count for _, count in counts.most_common()] == expected and sum(expected) == len(stated)
            assert counts.most_common(1)[0][0] == sample.answer
