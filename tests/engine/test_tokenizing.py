"""An answer behind a very long prompt decodes to the same text as vLLM's own detokenizer gives."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer
from vllm import SamplingParams
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
