"""A long prompt gives the tokens that vLLM gives, and an answer behind it the text that vLLM's detokenizer gives."""

import asyncio
import os
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.renderers import renderer_from_config
from vllm.renderers.base import BaseRenderer
from vllm.renderers.params import TokenizeParams
from vllm.v1.engine.detokenizer import FastIncrementalDetokenizer

from megacontext_vllm.engine import tokenizing
from megacontext_vllm.engine.patches import MARK


def decoded(kind: type, tokenizer, prompt: list[int], answer: list[int]) -> str:
    request = SimpleNamespace(
        request_id="r",
        prompt_token_ids=prompt,
        prompt_is_token_ids=None,
        sampling_params=SamplingParams(),
    )
    detokenizer = kind(tokenizer, request)
    return "".join(detokenizer.decode_next(token) for token in answer)


@pytest.mark.parametrize("answer", [" The answer.", "ing on", "日本語 and é", "\n\n12 345", "<|im_end|>x"])
def test_same_text(model_dir: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    prompt = tokenizer.encode("日本 wait") * (tokenizing.LONG_PROMPT // 2)
    assert len(prompt) > tokenizing.LONG_PROMPT
    patched = FastIncrementalDetokenizer.__init__
    stock = getattr(patched, MARK, patched)
    monkeypatch.setattr(tokenizing, "is_lifted", lambda: True)
    short = type("Short", (FastIncrementalDetokenizer,), {"__init__": tokenizing._wrap_detokenizer(stock)})
    whole = type("Whole", (FastIncrementalDetokenizer,), {"__init__": stock})
    tokens = tokenizer.encode(answer)
    assert decoded(short, tokenizer, prompt, tokens) == decoded(whole, tokenizer, prompt, tokens)


def test_its_threads_give_way(model_dir: Path) -> None:
    """In a process of its own: tokenizers starts its threads once."""
    script = """
import os, sys, threading, time
from transformers import AutoTokenizer
from megacontext_vllm.engine.tokenizing import encoder_of, start_threads

def nice(thread):
    return os.getpriority(os.PRIO_PROCESS, int(thread))

tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
before = set(os.listdir("/proc/self/task"))
start_threads()
new = None
while new != (new := set(os.listdir("/proc/self/task")) - before):
    time.sleep(0.1)  # until the thread that started them is gone
encoder_of(tokenizer).encode(["word " * 1000] * 16)
assert set(os.listdir("/proc/self/task")) == before | new, "no others are started later"
print(sorted({nice(thread) for thread in new}), nice(threading.get_native_id()))
"""
    found = subprocess.run(
        [sys.executable, "-c", script, str(model_dir)],
        capture_output=True,
        text=True,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "true"},
    )
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert found.stdout.split("\n")[-2] == f"[{min(usual + 10, 19)}] {usual}", found.stderr


@pytest.mark.parametrize(("method", "active", "starts"), [("spawn", True, 1), ("fork", True, 0), ("spawn", False, 0)])
def test_threads_are_started_where_nothing_is_forked(
    monkeypatch: pytest.MonkeyPatch, method: str, active: bool, starts: int
) -> None:
    """A process that is forked off one with such threads hangs with its first batch of texts."""
    started, made = [], []
    renderer = SimpleNamespace(_resources=ExitStack(), _tokenize_prompt_async=None)
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", method)
    monkeypatch.setattr(tokenizing, "start_threads", lambda: started.append(1))
    monkeypatch.setattr(tokenizing, "is_active", lambda config: active)
    tokenizing._wrap_init(lambda *given: made.append(given))(renderer, "config", "tokenizer")
    assert len(started) == starts and made == [(renderer, "config", "tokenizer")]
    assert (renderer._tokenize_prompt_async is None) == (not active)
    renderer._resources.close()


def test_a_short_prompt_does_not_wait_for_a_long_one(
    model_dir: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own renderer, of a server that takes histories, while it tokenises a long text."""
    monkeypatch.setenv("VLLM_PLUGINS", "megacontext")
    settings = {"max_model_len": 2048, "additional_config": {"megacontext": {}}}
    renderer = renderer_from_config(EngineArgs(model=str(model_dir), **settings).create_engine_config())
    limits = TokenizeParams(max_total_tokens=10**7, add_special_tokens=False)
    entered, released = threading.Event(), threading.Event()

    def tokenise(*given: object) -> list[int]:
        entered.set()
        assert released.wait(60)
        return [1, 2, 3]

    monkeypatch.setattr(tokenizing.TokenReuse, "tokenise", tokenise)

    async def render(prompt: str) -> list[int]:
        (rendered,) = await renderer.render_cmpl_async([{"prompt": prompt}], limits)
        return list(rendered["prompt_token_ids"])

    async def both() -> tuple[list[int], list[int]]:
        long = asyncio.create_task(render(text[: tokenizing.LONG]))
        try:
            assert await asyncio.to_thread(entered.wait, 60)
            short = await asyncio.wait_for(render("Short."), 20)
        finally:
            released.set()
        return await long, short

    long, short = asyncio.run(both())
    assert long == [1, 2, 3] and short == renderer.get_tokenizer().encode("Short.", add_special_tokens=False)
    renderer.shutdown()


class Renderer:
    """What of vLLM's renderer is looked at."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer = tokenizer
        self.config = SimpleNamespace(additional_config={"megacontext": {}})

    def get_tokenizer(self):
        return self.tokenizer

    def _can_produce_offsets(self) -> bool:
        return True

    def _wants_offsets(self, prompt, params) -> bool:
        return False

    def _build_tokens_prompt(self, ids, prompt):
        return {"prompt_token_ids": ids, **prompt}


@pytest.mark.parametrize("max_length", [None, 10**6, 50_000])
def test_same_tokens(model_dir: Path, text: str, max_length: int | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    params = TokenizeParams(max_total_tokens=None, add_special_tokens=False, truncate_prompt_tokens=max_length)
    asked_stock = []

    def stock(self, prompt, params):
        asked_stock.append(len(prompt["prompt"]))
        return BaseRenderer._build_tokens_prompt(
            tokenizer(prompt["prompt"], **params.get_encode_kwargs())["input_ids"], prompt
        )

    object.__setattr__(params, tokenizing.SALT, None)
    renderer, ours = Renderer(tokenizer), tokenizing._wrap_tokenize_prompt(stock)
    for prompt in (text[:300_000], text[:300_000] + "\n\nWho was it?", "Short."):
        made = ours(renderer, {"prompt": prompt}, params)
        assert made == stock(renderer, {"prompt": prompt}, params)
    # Once by each comparison, and by ours: of the short one, and where the prompt is cut off.
    assert len(asked_stock) == 3 + 1 + 2 * (max_length == 50_000)
