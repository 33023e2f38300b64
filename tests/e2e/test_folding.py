"""Answers longer than the engine's 256 positions: after a fold, too, the engine says what transformers says."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engines import GIST_SEED, Engine, greedy
from reference import Reference
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from megacontext_vllm.tree.nodes import BLOCK

LENGTH, WINDOW, STEPS = 256, 160, 190
FITS, FIT_STEPS = 150, 270  # a prompt that fits, and an answer that is folded twice
PRESENCE, FREQUENCY = 0.6, 0.3
PATTERN = r"([a-z]{2} [0-9]{2}, ){30}end"


@pytest.fixture(scope="module")
def small(start_engine: Callable[..., Engine]) -> Engine:
    return start_engine({"gist_net": f"random:{GIST_SEED}", "window": WINDOW}, max_model_len=LENGTH, max_num_seqs=8)


@pytest.fixture(scope="module")
def history(tokens: list[int]) -> list[int]:
    return tokens[60_000:63_000]


@pytest.fixture(scope="module")
def asked(history: list[int], eos: int) -> dict[str, tuple[list[int], SamplingParams]]:
    pattern = StructuredOutputsParams(regex=PATTERN)
    return {
        "plain": (history, greedy(STEPS)),
        "fits": (history[:FITS], greedy(FIT_STEPS)),
        "repetition": (history, greedy(STEPS, repetition_penalty=1.1)),
        "presence": (
            history,
            greedy(STEPS, presence_penalty=PRESENCE, frequency_penalty=FREQUENCY, logprobs=1),
        ),
        "seed": (history, greedy(STEPS, temperature=1.0, seed=5)),
        "min_tokens": (history, SamplingParams(max_tokens=STEPS, min_tokens=150, temperature=0, logit_bias={eos: 100})),
        "structured": (history, SamplingParams(max_tokens=1000, temperature=0, structured_outputs=pattern)),
        "n": (history, greedy(150, n=2, temperature=1.0, seed=11)),
        "unset": (history, greedy(None)),
    }


@pytest.fixture(scope="module")
def outputs(small: Engine, asked: dict[str, tuple[list[int], SamplingParams]]) -> dict[str, Any]:
    """All of them asked at once, so that each is folded among others."""
    prompts, params = zip(*asked.values(), strict=True)
    return dict(zip(asked, small.ask(list(prompts), list(params)), strict=True))


@pytest.fixture(scope="module")
def eos(small: Engine) -> int:
    return int(small.llm.get_tokenizer().eos_token_id)


class Fold:
    """What the model was shown when it went on after the last fold of an answer."""

    def __init__(self, engine: Engine, reference: Reference, prompt: list[int], output: Any) -> None:
        said = list(output.outputs[0].token_ids)
        trace = engine.trace(output)
        self.at = trace["history_tokens"] - len(prompt)
        assert 0 < self.at < len(said) and trace["renewed"] >= 1, "the answer was folded"
        self.entries = trace["entries"]
        self.rest = said[self.at :]
        everything = [*prompt, *said[: self.at]]
        self.embeddings, self.ids = engine.shown(reference, everything, output)
        self.before = said[: self.at]
        """What the answer had said by then: output, wherever it stands now."""


def test_the_answer_goes_on_from_what_is_shown(
    small: Engine, reference: Reference, history: list[int], outputs: dict[str, Any]
) -> None:
    output = outputs["plain"]
    assert len(output.outputs[0].token_ids) == STEPS and output.outputs[0].finish_reason == "length"
    assert len(output.prompt_token_ids) == len(history)
    fold = Fold(small, reference, history, output)
    assert any(entry["reason"] == "pinned" for entry in fold.entries), "the question is still there"
    assert fold.rest == reference.greedy(fold.embeddings, fold.ids, len(fold.rest))


def test_a_prompt_that_fits(
    small: Engine, reference: Reference, history: list[int], outputs: dict[str, Any]
) -> None:
    prompt = history[:FITS]
    said = list(outputs["fits"].outputs[0].token_ids)
    assert len(said) == FIT_STEPS
    assert said[: LENGTH - FITS] == reference.greedy_tokens(prompt, LENGTH - FITS), "stock until it is full"
    fold = Fold(small, reference, prompt, outputs["fits"])
    assert fold.at > LENGTH - FITS + BLOCK, "more than one fold"
    assert fold.rest == reference.greedy(fold.embeddings, fold.ids, len(fold.rest))


def test_repetition_penalty(
    small: Engine, reference: Reference, history: list[int], outputs: dict[str, Any]
) -> None:
    """It counts what is shown of the history, and all of the answer, also what is not shown any more."""
    fold = Fold(small, reference, history, outputs["repetition"])
    assert set(fold.before) - set(fold.ids), "something was said that is not shown"
    assert fold.rest == reference.greedy(fold.embeddings, [*fold.ids, *fold.before], len(fold.rest), 1.1)


def test_presence_and_frequency_penalties_and_logprobs(
    small: Engine, reference: Reference, history: list[int], outputs: dict[str, Any]
) -> None:
    output = outputs["presence"]
    fold = Fold(small, reference, history, output)
    assert len(fold.before) >= LENGTH - WINDOW
    said = list(fold.before)
    with torch.inference_mode():
        out = reference.model(inputs_embeds=fold.embeddings, use_cache=True)
        for token, reported in zip(fold.rest, output.outputs[0].logprobs[fold.at :], strict=True):
            logits = out.logits[0, -1].clone()
            assert math.isclose(reported[token].logprob, float(logits.log_softmax(-1)[token]), abs_tol=1e-3)
            for known in set(said):
                logits[known] -= PRESENCE + FREQUENCY * said.count(known)
            assert token == int(logits.argmax())
            said.append(token)
            step = torch.tensor([[token]])
            out = reference.model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)


def test_bad_words(
    small: Engine, asked: dict[str, tuple[list[int], SamplingParams]], outputs: dict[str, Any]
) -> None:
    """A word that began before the fold is not ended behind it; nothing before that changes."""
    prompt, params = asked["seed"]
    (free,), trace = outputs["seed"].outputs, small.trace(outputs["seed"])
    said, at = list(free.token_ids), trace["history_tokens"] - len(prompt)
    word = _across(small.llm.get_tokenizer(), said, at)
    forbidding = params.clone()
    forbidding.bad_words = [word]
    (output,) = small.ask([prompt], forbidding)
    again = list(output.outputs[0].token_ids)
    assert again[:at] == said[:at] and again[at] != said[at] and len(again) == STEPS


def _across(tokenizer: Any, said: list[int], at: int) -> str:
    """The shortest text of more than a token that ends with ``said[at]``, and that vLLM forbids as these tokens."""
    for begin in reversed(range(at - 4, at)):
        text = tokenizer.decode(said[begin : at + 1])
        params = SamplingParams(bad_words=[text])
        params.update_from_tokenizer(tokenizer)
        if said[begin : at + 1] in params.bad_words_token_ids:
            return str(text)
    raise AssertionError(f"{said[at - 4 : at + 1]} are no text's tokens: take another seed")


def test_structured_output(outputs: dict[str, Any]) -> None:
    (answer,) = outputs["structured"].outputs
    assert len(answer.token_ids) > LENGTH - WINDOW
    assert re.fullmatch(PATTERN, answer.text) and answer.finish_reason == "stop"


def test_min_tokens(outputs: dict[str, Any], eos: int) -> None:
    (answer,) = outputs["min_tokens"].outputs
    assert list(answer.token_ids).index(eos) == 150 == len(answer.token_ids) - 1 and answer.finish_reason == "stop"


def test_several_answers(outputs: dict[str, Any]) -> None:
    first, second = (tuple(answer.token_ids) for answer in outputs["n"].outputs)
    assert len(first) == len(second) == 150 and first != second


def test_alone_as_among_others_and_a_stop_string(
    small: Engine, asked: dict[str, tuple[list[int], SamplingParams]], outputs: dict[str, Any]
) -> None:
    prompt, params = asked["seed"]
    among = outputs["seed"].outputs[0]
    text = among.text
    stop = next(text[i : i + 9] for i in range(len(text) * 3 // 4, len(text)) if text.index(text[i : i + 9]) == i)
    params.stop = [stop]
    (alone,) = small.ask([prompt], params)
    (answer,) = alone.outputs
    assert answer.token_ids == among.token_ids[: len(answer.token_ids)] and len(answer.token_ids) > LENGTH - WINDOW
    assert answer.finish_reason == "stop" and answer.text == text[: text.index(stop)]


def test_what_cannot_be_folded_ends_with_the_engine(small: Engine, history: list[int]) -> None:
    params = SamplingParams(max_tokens=LENGTH, prompt_logprobs=1, temperature=0, ignore_eos=True)
    (output,) = small.ask([history[:60]], params)
    assert len(output.outputs[0].token_ids) == LENGTH - 60 and output.outputs[0].finish_reason == "length"
    with pytest.raises(VLLMValidationError, match="prompt_logprobs.*Lower max_tokens"):
        small.ask([history[:60]], SamplingParams(max_tokens=LENGTH + 1, prompt_logprobs=1))


def test_an_unset_max_tokens_ends_at_the_engines_length(small: Engine, outputs: dict[str, Any]) -> None:
    """The answer ends there instead of being folded and running for ever."""
    output = outputs["unset"]
    used = small.trace(output)["working_context"] + len(output.outputs[0].token_ids)
    assert output.outputs[0].finish_reason == "length"
    assert used == LENGTH
