"""The real server over HTTP, as a user starts it: limits, errors, the focus route, a million tokens."""

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from engines import SERVED_LIMIT as LIMIT
from engines import SERVED_WINDOW as WINDOW
from openai import BadRequestError, OpenAI

NUMBERS, EITHER = 125, [10203040, 50607080]
"""A tool's arguments: numbers of a token a digit, and a comma; longer than what a window leaves of the engine."""
QUESTIONS = json.loads((Path(__file__).parent / "questions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", timeout=500, max_retries=0)


def chat(client: OpenAI, content: str, **changes: Any) -> Any:
    body = {"vllm_xargs": {"megacontext_trace": 1}, **changes.pop("extra_body", {})}
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(
        model="m", messages=messages, temperature=0, extra_body=body, **{"max_tokens": 2, **changes}
    )


def focus(address: str, response_id: str, cache_salt: str | None = None) -> httpx.Response:
    headers = {"X-Cache-Salt": cache_salt} if cache_salt else {}
    return httpx.get(f"{address}/v1/megacontext/focus/{response_id}", headers=headers)


def test_history_limit_is_what_the_server_reports(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.max_model_len == LIMIT


def test_the_tokenizers_threads_give_way(address: str) -> None:
    """Those of a server as a user starts it, where vLLM uses its tokenizer long before the first long text."""
    port = address.rpartition(":")[2]
    processes = (path for path in Path("/proc").glob("[0-9]*/cmdline") if f"--port\0{port}\0" in _read(path))
    server = min(int(path.parent.name) for path in processes)
    usual = os.getpriority(os.PRIO_PROCESS, server)
    if usual > 9:
        pytest.skip("nothing is nicer than these tests")
    niceness = []
    for thread in Path(f"/proc/{server}/task").iterdir():
        with suppress(ProcessLookupError):
            niceness.append(os.getpriority(os.PRIO_PROCESS, int(thread.name)))
    assert usual + 10 in niceness, niceness


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # it has ended
        return ""


def test_over_the_history_limit(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="1200000|1,200,000"):
        client.completions.create(model="m", prompt=[11] * (LIMIT + 5), max_tokens=1)


def test_prompt_logprobs_of_a_long_history(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="prompt_logprobs"):
        client.completions.create(model="m", prompt=[11] * 5000, max_tokens=1, extra_body={"prompt_logprobs": 1})


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"megacontext_windov": 512}, "megacontext_window"),
        ({"megacontext_window": 5000}, "1024"),
        ({"megacontext_trace": "perhaps"}, "true or false"),
    ],
)
def test_bad_arguments(client: OpenAI, xargs: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        client.completions.create(model="m", prompt=[11] * 5000, max_tokens=1, extra_body={"vllm_xargs": xargs})


def test_ten_questions_have_their_answers_shown_raw(client: OpenAI, address: str, text: str) -> None:
    """At least 8 of 10 answers stand raw in a Working Context of 1,024 entries over 300,000 tokens and more."""
    found = []
    for item in QUESTIONS:
        assert item["answer"] in text
        response = chat(client, f"{text}\n\n{item['question']}")
        assert response.usage.prompt_tokens > 300_000
        trace = focus(address, response.id).raise_for_status().json()
        assert trace["working_context"] <= WINDOW
        assert trace["history_tokens"] == response.usage.prompt_tokens
        found.append(item["answer"] in shown_text(trace))
        gains = [entry["expected_gain"] for entry in trace["entries"] if entry["reason"] == "lens"]
        assert gains and -1 <= min(gains) < 0.1 < max(gains) <= 1, "some of it is worth showing, the rest fills up"
    print(f"{sum(found)} of {len(found)} answers shown raw")
    assert sum(found) >= 8, [item["question"] for item, hit in zip(QUESTIONS, found, strict=True) if not hit]


CODE, ASKED = "The ferry code of Elm Quay is 4827-KESTREL.", "What is the ferry code of Elm Quay?"
CALL = {"type": "tool_use", "id": "t1", "name": "read", "input": {}}


@pytest.mark.parametrize("way", ["completions", "responses", "messages", "messages, as agents do"])
def test_every_way_to_ask(address: str, text: str, way: str) -> None:
    """vLLM's other endpoints come by the same Working Context, and count the whole history."""
    document = f"{text[:60_000]}\n\n{CODE}\n\n{text[60_000:120_000]}"
    said = f"{document}\n\n{ASKED}"
    result = {"type": "tool_result", "tool_use_id": "t1", "content": document}
    talk = [
        {"role": "user", "content": ASKED},
        {"role": "assistant", "content": [{"type": "text", "text": "I will read the notes."}, CALL]},
        {"role": "user", "content": [result]},
    ]
    bodies: dict[str, dict[str, Any]] = {
        "completions": {"prompt": said, "max_tokens": 20},
        "responses": {"input": said, "max_output_tokens": 20},
        "messages": {"messages": [{"role": "user", "content": said}], "max_tokens": 20},
        "messages, as agents do": {"messages": talk, "max_tokens": 20},
    }
    body = {"model": "m", "temperature": 0, "vllm_xargs": {"megacontext_trace": 1}, **bodies[way]}
    response = httpx.post(f"{address}/v1/{way.partition(',')[0]}", json=body, timeout=500).raise_for_status().json()
    trace = focus(address, response["id"]).raise_for_status().json()
    assert trace["working_context"] <= WINDOW and trace["history_tokens"] > 20_000
    # Anthropic counts beside the input what was read from the cache, and what was written to it.
    counted = ("prompt_tokens", "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert sum(response["usage"].get(name) or 0 for name in counted) == trace["history_tokens"]
    shown = shown_text(trace)
    assert CODE in shown and ASKED in shown


def shown_text(trace: dict[str, Any]) -> str:
    return "".join(entry.get("text", "\0") for entry in trace["entries"])


def test_an_agent_reads_what_a_tool_returned(client: OpenAI, address: str, text: str) -> None:
    """The question stands before 300,000 tokens of a tool's result, behind instructions, and nothing behind them."""
    rules = " ".join(f"Rule {number}: quote what you find." for number in range(12))
    found = []
    for item in QUESTIONS[:4]:
        messages = [
            {"role": "system", "content": rules},
            {"role": "user", "content": item["question"]},
            {"role": "assistant", "content": "I will read the speeches."},
            {"role": "tool", "tool_call_id": "1", "content": text},
        ]
        traced = {"vllm_xargs": {"megacontext_trace": 1}}
        response = client.chat.completions.create(model="m", messages=messages, max_tokens=2, extra_body=traced)
        assert response.usage.prompt_tokens > 300_000
        shown = shown_text(focus(address, response.id).raise_for_status().json())
        assert rules in shown and item["question"] in shown and messages[2]["content"] in shown
        found.append(item["answer"] in shown)
    assert sum(found) >= 3, [item["question"] for item, hit in zip(QUESTIONS[:4], found, strict=True) if not hit]


def test_the_second_question_reuses_the_tree(client: OpenAI, address: str, text: str) -> None:
    response = chat(client, f"{text}\n\nWho was the first president?")
    trace = focus(address, response.id).json()
    assert trace["reused_tokens"] > 0.99 * trace["history_tokens"]


def test_a_salted_document_is_nobody_elses(client: OpenAI, address: str, text: str) -> None:
    content = text[:40_000]
    first = chat(client, content, extra_body={"cache_salt": "alice"})
    second = chat(client, content, extra_body={"cache_salt": "bob"})
    assert not second.usage.prompt_tokens_details or not second.usage.prompt_tokens_details.cached_tokens
    assert focus(address, second.id, cache_salt="bob").json()["reused_tokens"] == 0
    for salt in (None, "bob"):
        assert focus(address, first.id, salt).status_code == 404
    assert focus(address, first.id, cache_salt="alice").status_code == 200


def test_streaming_counts_the_true_history(client: OpenAI, text: str) -> None:
    chunks = list(chat(client, text[:40_000], stream=True, stream_options={"include_usage": True}, max_tokens=5))
    assert chunks[-1].usage.prompt_tokens > 7000
    assert chunks[-1].usage.completion_tokens == 5 or chunks[-2].choices[0].finish_reason == "stop"


def test_a_tool_call_goes_on_across_a_fold(client: OpenAI, address: str, text: str) -> None:
    """Its arguments are longer than the engine has positions for, and reach the client as one stream of one call."""
    numbers = {"type": "array", "items": {"enum": EITHER}, "minItems": NUMBERS, "maxItems": NUMBERS}
    parameters = {"type": "object", "properties": {"numbers": numbers}, "required": ["numbers"]}
    stream = chat(
        client,
        f"{text[:30_000]}\n\nWhich numbers are spoken of?",
        tools=[{"type": "function", "function": {"name": "note", "parameters": parameters}}],
        tool_choice={"type": "function", "function": {"name": "note"}},
        max_tokens=4 * WINDOW,
        stream=True,
        stream_options={"include_usage": True},
    )
    calls, response_id, usage, reasons = [], "", None, []
    for chunk in stream:
        response_id, usage = chunk.id, chunk.usage or usage
        for choice in chunk.choices:
            calls += choice.delta.tool_calls or []
            reasons += [choice.finish_reason] if choice.finish_reason else []
    trace = focus(address, response_id).raise_for_status().json()
    assert trace["history_tokens"] > usage.prompt_tokens, "it was folded"
    assert usage.completion_tokens > WINDOW and len(reasons) == 1
    assert {call.index for call in calls} == {0} and [c.function.name for c in calls if c.function.name] == ["note"]
    arguments = json.loads("".join(call.function.arguments or "" for call in calls))
    assert len(arguments["numbers"]) == NUMBERS and set(arguments["numbers"]) <= set(EITHER)


def test_a_million_tokens(client: OpenAI, address: str, text: str) -> None:
    """And a short request beside it is answered."""
    document = "\n\n".join(f"Copy {i}\n{text}" for i in (1, 2, 3))
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(chat, client, f"{document}\n\nWhich lieutenant ascended the Mississippi to its source?")
        short = pool.submit(chat, client, "What is the capital of France?", max_tokens=8)
        assert "Paris" in short.result().choices[0].message.content
        response = long.result()
    assert response.usage.prompt_tokens > 1_000_000
    assert response.usage.completion_tokens >= 1
    assert "Lieutenant Pike" in shown_text(focus(address, response.id).json())


def test_a_client_that_goes_away(client: OpenAI, address: str, text: str) -> None:
    """The next request is served, and nothing waits in the engine."""
    with pytest.raises(httpx.TimeoutException):
        httpx.post(
            f"{address}/v1/completions", json={"model": "m", "prompt": text[:900_000], "max_tokens": 500}, timeout=2
        )
    assert chat(client, "Say yes.").usage.completion_tokens >= 1
    for _ in range(60):
        metrics = httpx.get(f"{address}/metrics").text
        values = [
            float(line.split()[-1])
            for line in metrics.splitlines()
            if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{", "vllm:kv_cache_usage_perc"))
        ]
        if values and not any(values):
            return
        time.sleep(0.5)
    pytest.fail(f"requests or KV blocks are left behind: {values}")
