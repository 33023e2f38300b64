"""Reused tokens are exactly the tokens of the whole text, for the real tokenizer and for one that defies cutting."""

import random
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from megacontext_vllm.engine.token_reuse import LONG, TokenReuse


class Counting:
    """The default model's tokenizer, counting the characters it was given."""

    def __init__(self, model_dir: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.characters = 0

    def __call__(self, text: str):
        self.characters += len(text)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return encoding["input_ids"], np.array(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)[:, 0]

    def whole(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def tokenize(model_dir: Path) -> Counting:
    return Counting(model_dir)


def test_only_what_is_new_is_tokenised(tokenize: Counting, text: str) -> None:
    reuse = TokenReuse()
    for question, allowed in (("Who?", 10**9), ("Whose was it, and when?<|im_end|>", 10_000), ("Why?\n\n", 10_000)):
        prompt = f"<|im_start|>user\n{text[:400_000]}\n\n{question}"
        tokenize.characters = 0
        assert reuse.encode(None, prompt, tokenize) == tokenize.whole(prompt)
        assert tokenize.characters <= allowed


def test_random_edits_of_known_texts(tokenize: Counting, text: str) -> None:
    choose = random.Random(0)
    reuse = TokenReuse()
    pieces = ["", " ", "\n", "\n\nQ?", "é日本", "12345", "<|im_end|>\n<|im_start|>user\n", "   \n  x", "…" * 40]
    prompt = text[:120_000]
    for _ in range(40):
        at = choose.randrange(LONG, len(prompt))
        cut = choose.choice([0, 1, 7, 500])
        prompt = prompt[:at] + choose.choice(pieces) + prompt[at + cut :] + text[at : at + 300]
        assert reuse.encode("salt", prompt, tokenize) == tokenize.whole(prompt)


def test_namespaces_do_not_see_each_other(tokenize: Counting, text: str) -> None:
    reuse = TokenReuse()
    prompt = text[:100_000]
    for namespace in (None, "alice", "bob"):
        tokenize.characters = 0
        reuse.encode(namespace, prompt, tokenize)
        assert tokenize.characters == len(prompt)


def test_least_recently_used_text_goes_first(tokenize: Counting, text: str) -> None:
    reuse = TokenReuse(max_characters=150_000)
    first, second = text[:100_000], text[200_000:300_000]
    reuse.encode(None, first, tokenize)
    reuse.encode(None, second, tokenize)
    tokenize.characters = 0
    reuse.encode(None, first, tokenize)
    assert tokenize.characters == len(first)


def test_a_tokenizer_without_local_rules_is_never_cut() -> None:
    """Here every token depends on the length of the whole text: no join can be right, and none is made."""

    def tokenize(text: str):
        return [len(text) + ord(c) for c in text], np.arange(len(text), dtype=np.int64)

    reuse = TokenReuse()
    text = "line of words\n" * 5000
    for suffix in ("", "a", "another\n"):
        assert reuse.encode(None, text + suffix, tokenize) == tokenize(text + suffix)[0]
