"""A MegaContext server as a reader of the evaluation: it is sent the whole history, or what a method chose."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from megacontext_vllm.eval.context import show_spans
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.readers.server_reader import ServerReader
from megacontext_vllm.eval.sample import History, Layout, Sample

CANDIDATES = (" 39120", " 70554", " 48213", " 11876")


@pytest.fixture(scope="module")
def chat(model_dir: Path) -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(model_dir))


@pytest.fixture(scope="module")
def sample(chat: ChatFormat, text: str) -> Sample:
    """One sentence in some 25,000 tokens of text."""
    before, fact = chat.encode(text[:80_000]), chat.encode("\n\nThe secret number of Mira Oldenburg is 48213.")
    document = f"{chat.decode(before)}{chat.decode(fact)} Nobody else knew it. {text[80_000:120_000]}"
    tokens = chat.encode(document)
    assert tokens[len(before) : len(before) + len(fact)].tolist() == fact.tolist()
    return Sample(
        id="s",
        task="needle",
        history=History("h", tokens, Layout.DOCUMENT),
        question="What is the secret number of Mira Oldenburg?",
        answer_start="The secret number of Mira Oldenburg is",
        answer=" 48213",
        candidates=CANDIDATES,
        evidence=((len(before), len(before) + len(fact)),),
    )


@pytest.mark.parametrize("by_vllm", [False, True])
def test_the_whole_history(address: str, chat: ChatFormat, sample: Sample, by_vllm: bool) -> None:
    """The server counts as many tokens as the prompt has. With and without what only vLLM can do."""
    reader = ServerReader(f"{address}/v1", chat=chat, structured_choice=by_vllm, start_answer=by_vllm)
    assert reader.model == "m"
    prompt = chat.prompt(sample)
    reading = reader.ask(prompt, None, sample)
    begun = len(chat.encode(sample.answer_start))
    assert reading.prefill == len(prompt.tokens) - (0 if by_vllm else begun)
    assert reading.exact and reading.choice == 2, reading


def test_what_a_method_chose(address: str, chat: ChatFormat, sample: Sample) -> None:
    reader = ServerReader(f"{address}/v1", chat=chat)
    prompt = chat.prompt(sample)
    ((start, stop),) = sample.evidence
    gap = chat.encode("\n[...]\n").tolist()
    context = show_spans([(0, 64), (start - 32, stop + 32)], len(prompt.history), gap)
    reading = reader.ask(prompt, context, sample)
    assert reading.exact and reading.choice == 2, reading
    assert reading.prefill < 300
    without = reader.ask(prompt, show_spans([(0, 200)], len(prompt.history), gap), sample)
    assert not without.exact
