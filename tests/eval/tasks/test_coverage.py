"""Topics: passages of the length that is wanted, and four names that only a passage can tell apart."""

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.coverage import Coverage
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.topics import PASSAGES, TOPICS


def test_passages_have_100_to_150_tokens(chat: ChatFormat) -> None:
    for passage in PASSAGES:
        for topic in TOPICS:
            assert 100 <= len(chat.encode(passage.format(**vars(topic)))) <= 150, topic.name


def test_topics_are_not_parts_of_others() -> None:
    names = [topic.name for topic in TOPICS]
    texts = [passage.format(**vars(topic)) for topic in TOPICS for passage in PASSAGES]
    for topic in TOPICS:
        assert sum(topic.name in name for name in names) == 1
        assert sum(topic.name in text for text in texts) == len(PASSAGES)


def test_only_the_right_topic_is_in_the_history(filler: Filler, chat: ChatFormat) -> None:
    for seed in range(4):
        samples = Coverage().samples(filler, chat, 8192, seed)
        history = chat.decode(samples[0].history.tokens)
        for sample in samples:
            assert [name for name in sample.candidates if name in history] == [sample.answer]
            assert all(name.strip() in sample.question.casefold() for name in sample.candidates)
