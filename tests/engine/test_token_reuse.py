"""Reused tokens are exactly the tokens of the whole text, for the real tokenizer and for one that defies cutting."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from megacontext_vllm.engine import token_reuse
from megacontext_vllm.engine.token_pieces import Encoder
from megacontext_vllm.engine.token_reuse import LONG, TokenReuse
from megacontext_vllm.engine.tokenizing import encoder_of


class Counting:
    """The default model's tokenizer, counting the characters it was given."""

    def __init__(self, model_dir: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model_dir)
        self.characters = 0
        inner = encoder_of(self.tokenizer)

        def encode(parts: list[str]):
            self.characters += sum(map(len, parts))
            return inner.encode(parts)

        self.encoder = Encoder(encode, inner.at_words)

    def whole(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def counting(model_dir: Path) -> Counting:
    return Counting(model_dir)


def test_only_what_is_new_is_tokenised(counting: Counting, text: str) -> None:
    reuse = TokenReuse(1 << 30)
    for question, allowed in (("Who?", 10**9), ("Whose was it, and when?<|im_end|>", 10_000), ("Why?\n\n", 10_000)):
        prompt = f"<|im_start|>user\n{text[:400_000]}\n\n{question}"
        counting.characters = 0
        assert reuse.tokenise(None, prompt, counting.encoder) == counting.whole(prompt)
        assert counting.characters <= allowed


def test_random_edits_of_known_texts(counting: Counting, text: str) -> None:
    choose = random.Random(0)
    reuse = TokenReuse(1 << 30)
    pieces = ["", " ", "\n", "\n\nQ?", "é日本", "12345", "<|im_end|>\n<|im_start|>user\n", "   \n  x", "…" * 40]
    prompt = text[:120_000]
    for _ in range(40):
        at = choose.randrange(LONG, len(prompt))
        cut = choose.choice([0, 1, 7, 500])
        prompt = prompt[:at] + choose.choice(pieces) + prompt[at + cut :] + text[at : at + 300]
        assert reuse.tokenise("salt", prompt, counting.encoder) == counting.whole(prompt)


def test_namespaces_do_not_see_each_other(counting: Counting, text: str) -> None:
    reuse = TokenReuse(1 << 30)
    prompt = text[:100_000]
    for namespace in (None, "alice", "bob"):
        counting.characters = 0
        reuse.tokenise(namespace, prompt, counting.encoder)
        assert counting.characters >= len(prompt)


def test_least_recently_used_text_goes_first(counting: Counting, text: str) -> None:
    first, second = text[:100_000], text[200_000:300_000]
    # A character is a byte here (or two), and a token four.
    reuse = TokenReuse(3 * sys.getsizeof(first))
    reuse.tokenise(None, first, counting.encoder)
    reuse.tokenise(None, second, counting.encoder)
    counting.characters = 0
    reuse.tokenise(None, first, counting.encoder)
    assert counting.characters >= len(first)


def test_the_last_text_is_kept_however_long(counting: Counting, text: str) -> None:
    reuse = TokenReuse(50_000)
    prompt = text[:100_000]
    reuse.tokenise(None, prompt, counting.encoder)
    counting.characters = 0
    assert reuse.tokenise(None, prompt + " And?", counting.encoder) == counting.whole(prompt + " And?")
    assert counting.characters < 3 * len(prompt) // 2  # ``whole`` is counted, too


def test_many_chats_with_one_system_message(
    counting: Counting, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each finds its own among those that begin alike, and few of them are compared to the character."""
    compared = []
    common_length = token_reuse._common_length
    monkeypatch.setattr(token_reuse, "_common_length", lambda a, b: compared.append(1) or common_length(a, b))
    reuse, system = TokenReuse(1 << 30), text[:40_000]
    chats = [f"{system}\n\nChat {chat}: {text[50_000 + chat * 1000 :][:20_000]}" for chat in range(40)]
    for chat in chats:
        reuse.tokenise(None, chat, counting.encoder)
    assert 0 < len(compared) <= token_reuse._COMPARED * len(chats)
    compared.clear()
    for chat in chats:
        counting.characters = 0
        assert reuse.tokenise(None, chat + " And then?", counting.encoder) == counting.whole(chat + " And then?")
        assert counting.characters <= len(chat) + 10_000, "``whole`` is counted, too"
    assert not compared
    edited = chats[-1][:-5_000] + " Who?"
    counting.characters = 0
    assert reuse.tokenise(None, edited, counting.encoder) == counting.whole(edited)
    assert counting.characters <= len(edited) + 10_000
    assert compared


def test_another_question_takes_the_place_of_the_last(counting: Counting, text: str) -> None:
    """Ten questions about one document are remembered as one; a chat that departs long before is another."""
    reuse = TokenReuse(1 << 30)
    for question in range(10):
        reuse.tokenise(None, f"{text[:200_000]}\n\nQuestion {question}?", counting.encoder)
    assert len(reuse._known) == 1
    reuse.tokenise(None, text[:150_000] + "!" + text[150_001:200_000], counting.encoder)
    assert len(reuse._known) == 2


def test_the_longer_of_two_that_departed(counting: Counting, text: str) -> None:
    """A first turn, and a long chat that came of it and whose last message is asked anew."""
    reuse = TokenReuse(1 << 30)
    first, chat = text[:40_000], text[:40_000] + "!" + text[40_001:300_000]
    for prompt in (first, chat):
        reuse.tokenise(None, prompt, counting.encoder)
    reuse.tokenise(None, first, counting.encoder)
    counting.characters = 0
    reuse.tokenise(None, chat[:-1000] + " Anew.", counting.encoder)
    assert counting.characters <= 10_000


def test_a_tokenizer_without_local_rules_is_never_cut() -> None:
    """Here every token depends on the length of the whole text: no join can be right, and none is made."""

    def ids(text: str) -> list[int]:
        return [len(text) + ord(character) for character in text]

    def encode(parts: list[str]):
        return [SimpleNamespace(ids=ids(part), token_to_chars=lambda token: (token, token + 1)) for part in parts]

    reuse = TokenReuse(1 << 30)
    text = "line of words\n" * 5000
    for suffix in ("", "a", "another\n"):
        assert reuse.tokenise(None, text + suffix, Encoder(encode, at_words=False)) == ids(text + suffix)
