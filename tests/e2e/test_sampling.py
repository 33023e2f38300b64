"""What a request may ask of sampling keeps its meaning over a Working Context with gists."""

import math
from typing import Any

import pytest
import torch
from engines import Engine, greedy
from reference import Reference
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

STEPS = 16


@pytest.fixture(scope="module")
def history(tokens: list[int]) -> list[int]:
    return tokens[120_000:126_000]


def reference_run(
    engine: Engine, reference: Reference, history: list[int], output: Any, presence: float = 0.0, frequency: float = 0.0
) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy with OpenAI's presence and frequency penalties, which count output tokens only; and all logprobs."""
    embeddings, _ = engine.shown(reference, history, output)
    said: list[int] = []
    logprobs: list[torch.Tensor] = []
    with torch.inference_mode():
        out = reference.model(inputs_embeds=embeddings, use_cache=True)
        for _ in range(STEPS):
            logits = out.logits[0, -1].clone()
            logprobs.append(logits.log_softmax(-1))
            for token in set(said):
                logits[token] -= presence + frequency * said.count(token)
            said.append(int(logits.argmax()))
            step = torch.tensor([said[-1:]])
            out = reference.model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
    return said, logprobs


def test_presence_and_frequency_penalties(engine: Engine, reference: Reference, history: list[int]) -> None:
    (output,) = engine.ask([history], greedy(STEPS, presence_penalty=1.5, frequency_penalty=1.0))
    said, _ = reference_run(engine, reference, history, output, presence=1.5, frequency=1.0)
    assert list(output.outputs[0].token_ids) == said


def test_logprobs(engine: Engine, reference: Reference, history: list[int]) -> None:
    (output,) = engine.ask([history], greedy(STEPS, logprobs=3))
    said, logprobs = reference_run(engine, reference, history, output)
    assert list(output.outputs[0].token_ids) == said
    for reported, expected in zip(output.outputs[0].logprobs, logprobs, strict=True):
        for token, logprob in reported.items():
            assert math.isclose(logprob.logprob, float(expected[token]), abs_tol=1e-3)


def test_several_answers(engine: Engine, history: list[int]) -> None:
    params = greedy(STEPS, n=3, temperature=1.0, seed=11)
    (output,) = engine.ask([history], params)
    (again,) = engine.ask([history], params)
    answers = [tuple(answer.token_ids) for answer in output.outputs]
    assert len(answers) == 3
    assert len(set(answers)) > 1
    assert answers == [tuple(answer.token_ids) for answer in again.outputs]


def test_stop_string(engine: Engine, history: list[int]) -> None:
    (whole,) = engine.ask([history], greedy(STEPS))
    text = whole.outputs[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    (stopped,) = engine.ask([history], greedy(STEPS, stop=[stop]))
    assert stopped.outputs[0].finish_reason == "stop"
    assert stopped.outputs[0].text == text[: text.index(stop)]


def test_structured_output(engine: Engine, history: list[int]) -> None:
    params = SamplingParams(
        max_tokens=STEPS, temperature=0, structured_outputs=StructuredOutputsParams(regex=r"[0-9]{3}-[a-z]{2}")
    )
    (output,) = engine.ask([history], params)
    text = output.outputs[0].text
    assert len(text) == 6 and text[:3].isdigit() and text[3] == "-" and text[4:].isalpha()


def test_min_tokens(engine: Engine, history: list[int]) -> None:
    eos = engine.llm.get_tokenizer().eos_token_id
    params = SamplingParams(max_tokens=STEPS, min_tokens=STEPS, temperature=0, logit_bias={eos: 100.0})
    (output,) = engine.ask([history], params)
    assert len(output.outputs[0].token_ids) == STEPS
    assert eos not in output.outputs[0].token_ids


def test_a_smaller_window_for_one_request(engine: Engine, history: list[int]) -> None:
    params = greedy(2)
    params.extra_args = {"megacontext_trace": 1, "megacontext_window": 300}
    (output,) = engine.ask([history], params)
    trace = engine.trace(output)
    assert trace["window"] == 300
    assert trace["working_context"] <= 300


def test_prompt_logprobs_are_refused(engine: Engine, history: list[int]) -> None:
    with pytest.raises(VLLMValidationError, match="prompt_logprobs"):
        engine.ask([history], SamplingParams(max_tokens=1, prompt_logprobs=1))
