"""The reader against transformers asked in the simplest way: one sequence, no cache, no batch; and real generation."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext_vllm.errors import ReaderError
from megacontext_vllm.eval.context import Context, Gap, Gist, Raw
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.readers import transformers_reader
from megacontext_vllm.eval.readers.assembly import assemble
from megacontext_vllm.eval.readers.base import Reading
from megacontext_vllm.eval.readers.transformers_reader import TransformersReader
from megacontext_vllm.eval.sample import History, Layout, Sample

GAP = (198, 75, 198)


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> TransformersReader:
    return TransformersReader(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def real(model_dir: Path) -> TransformersReader:
    return TransformersReader(model_dir, device="cpu")


def question(chat: ChatFormat, text: str, candidates: tuple[str, ...], answer: int = 0) -> Sample:
    history = History("h", chat.encode(text), Layout.DOCUMENT)
    return Sample(
        *("s", "needle", history, "What is the code of Mira?", "The code of Mira is", candidates[answer], candidates),
        evidence=((0, 4),),
    )


def sentence(text: str, number: int) -> str:
    return text[5000 + 400 * number : 5400 + 400 * number]


def mixed(prompt: Prompt, dim: int, seed: int = 0) -> Context:
    """Raw tokens, a gap and two gists."""
    vectors = np.random.default_rng(seed).normal(size=(2, dim)).astype(np.float32)
    pieces = (Gist(0, 32, vectors[0]), Raw(32, 40), Gap(40, 50), Gist(50, 60, vectors[1]), Raw(60, len(prompt.history)))
    return Context(pieces, GAP)


def embedded(reader: TransformersReader, prompt: Prompt, context: Context, more: list[int]) -> torch.Tensor:
    """``[1, W, d]`` inputs, put together by hand."""
    table = torch.from_numpy(reader.embedding)
    rows = [table[torch.from_numpy(prompt.prefix.astype(np.int64))]]
    for piece in context.pieces:
        if isinstance(piece, Gist):
            rows.append(torch.from_numpy(piece.vector)[None])
        else:
            ids = prompt.history[piece.start : piece.stop].tolist() if isinstance(piece, Raw) else list(context.gap)
            rows.append(table[torch.tensor(ids)])
    rows.append(table[torch.tensor([*prompt.suffix.tolist(), *more])])
    return torch.cat(rows)[None]


def naive_loss(reader: TransformersReader, prompt: Prompt, context: Context, ids: list[int]) -> float:
    with torch.inference_mode():
        logits = reader.model(inputs_embeds=embedded(reader, prompt, context, ids)).logits[0, -len(ids) - 1 : -1]
    return float(-logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].mean())


CANDIDATES = (" Mira", " 48213", " a very long answer of many tokens", " yes and no")


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_one_sequence_each(tiny: TransformersReader, text: str, seed: int) -> None:
    sample = question(tiny.chat, sentence(text, seed), CANDIDATES)
    prompt = tiny.chat.prompt(sample)
    context = mixed(prompt, 32, seed)
    reading = tiny.ask(prompt, context, sample)
    ids = [tiny.chat.encode(candidate).tolist() for candidate in CANDIDATES]
    assert len({len(some) for some in ids}) > 1
    assert reading.losses == pytest.approx([naive_loss(tiny, prompt, context, some) for some in ids], rel=1e-5)
    assert reading.choice == min(range(4), key=lambda i: reading.losses[i])
    assert reading.prefill == prompt.overhead + context.cost == embedded(tiny, prompt, context, []).shape[1]
    assert reading.answer is None and reading.seconds > 0


def test_candidates_of_one_token(tiny: TransformersReader, text: str) -> None:
    sample = question(tiny.chat, sentence(text, 0), (" a", " the", " of", " in"))
    prompt = tiny.chat.prompt(sample)
    context = mixed(prompt, 32)
    ids = [tiny.chat.encode(candidate).tolist() for candidate in sample.candidates]
    assert all(len(some) == 1 for some in ids)
    expected = [naive_loss(tiny, prompt, context, some) for some in ids]
    assert tiny.ask(prompt, context, sample).losses == pytest.approx(expected, rel=1e-5)


def test_a_continuation(tiny: TransformersReader, text: str) -> None:
    history = History("h", tiny.chat.encode(sentence(text, 0) * 3), Layout.TEXT)
    target = tiny.chat.encode(sentence(text, 4))[:20]
    sample = Sample("s", "continuation", history, target=target)
    prompt = tiny.chat.prompt(sample)
    context = mixed(prompt, 32)
    expected = naive_loss(tiny, prompt, context, target.tolist())
    assert tiny.continue_text(prompt, context, sample) == pytest.approx(expected, rel=1e-5)


def test_ids_and_their_embeddings_are_the_same_to_the_bit(tiny: TransformersReader, text: str) -> None:
    """A gist that is a token's embedding is that token, so a context with gists is read as one without."""
    sample = question(tiny.chat, sentence(text, 0), CANDIDATES)
    prompt = tiny.chat.prompt(sample)
    length = len(prompt.history)
    raw = tiny.ask(prompt, Context((Raw(0, length),), GAP), sample)
    vectors = tiny.embedding[prompt.history]
    gists = tuple(Gist(i, i + 1, vectors[i]) for i in range(length))
    assert tiny.ask(prompt, Context(gists, GAP), sample).losses == raw.losses


def timeless(reading: Reading | float) -> Reading | float:
    return dataclasses.replace(reading, seconds=0) if isinstance(reading, Reading) else reading


@pytest.mark.parametrize("remembered", [0, 3, 4096])
def test_calls_do_not_depend_on_each_other(
    tiny_model: Path, text: str, monkeypatch: pytest.MonkeyPatch, remembered: int
) -> None:
    """Every outcome of a shuffled, repeating sequence is to the bit that of a new reader asked only this."""
    monkeypatch.setattr(transformers_reader, "REMEMBERED", remembered)
    reader = TransformersReader(tiny_model, device="cpu")
    calls = []
    for number in range(4):
        sample = question(reader.chat, sentence(text, number), CANDIDATES, answer=number)
        prompt = reader.chat.prompt(sample)
        calls.append(("ask", prompt, mixed(prompt, 32, number), sample))
        calls.append(("ask", prompt, Context((Raw(3, 60),), GAP), sample))
        target = dataclasses.replace(sample, target=prompt.history[:9])
        calls.append(("continue_text", prompt, mixed(prompt, 32, number), target))
    alone = []
    for what, *arguments in calls:
        monkeypatch.setattr(reader, "_remembered", type(reader._remembered)())
        alone.append(timeless(getattr(reader, what)(*arguments)))
    monkeypatch.setattr(reader, "_remembered", type(reader._remembered)())
    order = np.random.default_rng(0).integers(len(calls), size=40)
    for i in order:
        what, *arguments = calls[i]
        assert timeless(getattr(reader, what)(*arguments)) == alone[i]
    assert len(reader._remembered) <= remembered


def test_equal_prompts_are_read_once(
    tiny_model: Path, tiny: TransformersReader, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = TransformersReader(tiny_model, device="cpu")
    first = question(reader.chat, sentence(text, 0), CANDIDATES)
    prompt = reader.chat.prompt(first)
    reading = reader.ask(prompt, Context((Raw(0, 20),), GAP), first)
    other = dataclasses.replace(first, id="other", answer=CANDIDATES[1])
    moved = dataclasses.replace(first, candidates=CANDIDATES[::-1])
    calls = []
    judge = reader._judge
    monkeypatch.setattr(reader, "_judge", lambda *arguments: calls.append(1) or judge(*arguments))
    again = reader.ask(prompt, Context((Raw(0, 7), Raw(7, 20)), GAP), other)
    assert not calls and again.losses == reading.losses
    assert reader.ask(prompt, Context((Raw(0, 20),), GAP), moved).losses == pytest.approx(reading.losses[::-1])
    assert calls


def test_exact_is_what_generation_begins_with(real: TransformersReader, text: str) -> None:
    """Answers cut from what the model generates, and others; each by itself as the right answer."""
    outcomes = []
    for number in range(4):
        code = 10_000 + 7919 * number
        story = sentence(text, number) + f" The code of Mira is {code}. " + sentence(text, number + 9)
        probe = question(real.chat, story, (f" {code}", " 48213", " the", " unknown"))
        prompt = real.chat.prompt(probe)
        context = Context((Raw(0, len(prompt.history)),), GAP)
        ids = torch.from_numpy(assemble(prompt, context).ids)[None]
        written = real.model.generate(ids, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(ids))
        written = written[0, ids.shape[1] :].tolist()
        begun = [real.chat.decode(np.array(written[:n], dtype=np.uint32)) for n in (1, 3, 6)]
        candidates = (*begun, begun[1] + " 7")
        for answer in candidates:
            sample = dataclasses.replace(probe, answer=answer, candidates=candidates)
            encoded = real.chat.encode(answer).tolist()
            outcomes.append(real.ask(prompt, context, sample).exact)
            assert outcomes[-1] == (written[: len(encoded)] == encoded), (answer, written)
    assert 4 <= sum(outcomes) < len(outcomes)


def test_the_default_model_finds_a_needle(real: TransformersReader, text: str) -> None:
    story = sentence(text, 0) + " The code of Mira is 48213. " + sentence(text, 1)
    sample = question(real.chat, story, (" 39120", " 48213", " 70554", " 11876"), answer=1)
    prompt = real.chat.prompt(sample)
    reading = real.ask(prompt, Context((Raw(0, len(prompt.history)),), GAP), sample)
    assert reading.choice == 1 and reading.exact


def test_more_entries_than_positions(tiny: TransformersReader, text: str) -> None:
    assert tiny.limit == 2048
    sample = question(tiny.chat, text[:20_000], CANDIDATES)
    prompt = tiny.chat.prompt(sample)
    with pytest.raises(ReaderError, match="positions for 2048"):
        tiny.ask(prompt, Context((Raw(0, 2048),), GAP), sample)


def test_gists_of_another_model(tiny: TransformersReader, text: str) -> None:
    sample = question(tiny.chat, sentence(text, 0), CANDIDATES)
    prompt = tiny.chat.prompt(sample)
    with pytest.raises(ReaderError, match="33 values"):
        tiny.ask(prompt, mixed(prompt, 33), sample)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(ReaderError, match="make model"):
        TransformersReader(tmp_path / "none")
