"""Dense retrieval with the real encoder: it finds a paraphrase, and embeds nothing twice."""

from collections.abc import Callable

import numpy as np
import pytest

from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.dense import Dense
from megacontext_vllm.eval.methods.minilm import DIM, MiniLM
from megacontext_vllm.eval.prompt import ChatFormat, Prompt


@pytest.fixture(scope="module")
def dense(tools: Tools) -> Dense:
    return Dense(tools)


def test_finds_a_paraphrase(
    dense: Dense, chat: ChatFormat, ids: np.ndarray, prompt_of: Callable[..., Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = 1_000
    fact = chat.encode(" Old Tobias keeps three goats and a parrot in the shed behind his cottage.")
    history = np.concatenate([ids[:place], fact, ids[place:2_000]])
    prompt = prompt_of(history, question="Which animals does the elderly man own?")
    index = dense.index(history)
    assert index.shape == (-(-len(history) // 32), DIM) and index.dtype == np.float32
    assert np.allclose(np.linalg.norm(index, axis=1), 1, atol=1e-5)
    context = dense.select(View(prompt, index), 256)
    assert context.recall([(place, place + len(fact))]) > 0.9
    monkeypatch.setattr(dense._encoder._encoder, "_forward", lambda _: 1 / 0)
    again = Dense(dense.tools)
    monkeypatch.setattr(again._encoder._encoder, "_forward", lambda _: 1 / 0)
    assert np.array_equal(again.index(history), index), "all of it is cached"
    assert again.select(View(prompt, index), 256).raw == context.raw


def test_chunks_are_widened(dense: Dense, ids: np.ndarray, chat: ChatFormat) -> None:
    texts = dense.texts(ids[:100], Dense.widened_by)
    assert texts == [chat.decode(ids[:100][a:b]) for a, b in ((0, 48), (16, 80), (48, 100), (80, 100))]


def test_batches_do_not_matter_much(tools: Tools, dense: Dense) -> None:
    encoder = dense._encoder
    texts = ["a", "A much longer text than that one, about goats.", "Parrots.", "", "Parrots."]
    encoded = [encoder._encoder._tokenizer.encode(text) for text in texts]
    together = encoder._encoder._forward(encoded)
    alone = np.concatenate([encoder._encoder._forward([one]) for one in encoded])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(encoder.embed(texts) - alone).max() < 1e-5
    assert encoder.embed([]).shape == (0, DIM)


def test_what_was_embedded_before_a_kill_is_kept(tools: Tools, dense: Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megacontext_vllm.eval.methods.minilm._BATCH", 2)
    monkeypatch.setattr("megacontext_vllm.eval.methods.minilm._SAVED_AT_ONCE", 1)
    encoder: MiniLM = dense._encoder
    forward, calls = encoder._encoder._forward, []

    def killed(encoded: list[list[int]]) -> np.ndarray:
        calls.append(len(encoded))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return forward(encoded)

    monkeypatch.setattr(encoder._encoder, "_forward", killed)
    texts = [f"text of a number {i}" for i in range(8)]
    with pytest.raises(KeyboardInterrupt):
        encoder.embed(texts)
    calls[:] = [0] * 3
    assert encoder.embed(texts).shape == (8, DIM)
    assert calls[3:] == [2, 2]
