"""A sample as the reader's prompt: the history, and what stands around it whatever the method shows of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.sample import Layout, Sample

_HERE = "\u241f history \u241f"  # not in any template, and no tokenizer drops it
RECENT = 128
"""Tokens before a continuation that every method shows."""


def messages_around(sample: Sample, text: str) -> list[dict[str, str]]:
    """The conversation of a sample with ``text`` in the place of its history."""
    question, said = sample.question, [{"role": role, "content": content} for role, content in sample.said]
    match sample.history.layout:
        case Layout.TOOL_RESULT:
            return [{"role": "user", "content": question}, *said, {"role": "tool", "content": text}]
        case Layout.FOLLOW_UP:
            first, *rest = said
            asked = {"role": "user", "content": f"{text}\n\n{first['content']}"}
            return [asked, *rest, {"role": "user", "content": question}]
        case _:
            return [{"role": "user", "content": f"{text}\n\n{question}"}]


@dataclass(frozen=True, eq=False)
class Prompt:
    """``prefix`` + ``history`` + ``suffix``, each uint32 ``[n]``; only the history is anybody's choice.

    ``question``: text that a method may search with.
    """

    prefix: NDArray[np.uint32]
    history: NDArray[np.uint32]
    suffix: NDArray[np.uint32]
    question: str

    @property
    def tokens(self) -> NDArray[np.uint32]:
        """The whole prompt."""
        return np.concatenate([self.prefix, self.history, self.suffix])

    @property
    def overhead(self) -> int:
        """Entries that are not the history's."""
        return len(self.prefix) + len(self.suffix)


class ChatFormat:
    """A tokenizer's chat template, taken apart. ``tokenizer``: a fast one of transformers."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    @property
    def sink(self) -> int:
        """What stands in front of plain text: a frozen model wants one raw token that it is used to see first."""
        between = self.tokenizer.get_vocab().get("<|endoftext|>")
        return int(
            next(id for id in (between, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id) if id is not None)
        )

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Token ids uint32 ``[n]`` of a piece of a rendered prompt; special tokens in it are recognised."""
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.uint32)

    def decode(self, ids: NDArray[np.uint32]) -> str:
        """The text of token ids ``[n]``, exactly: no clean-up, special tokens included."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def turns(self, messages: list[dict[str, str]]) -> str:
        """Complete turns, the user's first, as they stand in the middle of a rendered conversation."""
        before = [{"role": "user", "content": _HERE}, {"role": "assistant", "content": _HERE}]
        return self._render(before + messages).removeprefix(self._render(before))

    def messages(self, turns: str) -> tuple[tuple[str, str], ...]:
        """``(role, content)`` of what ``turns`` rendered, user and assistant by turns; empty where that is not sure."""
        other = _HERE[::-1]
        pair = [{"role": "user", "content": _HERE}, {"role": "assistant", "content": other}]
        before, rest = self.turns(pair).split(_HERE)
        between, after = rest.split(other)
        found: list[dict[str, str]] = []
        for part in turns.split(before)[1:]:
            said, _, answered = part.partition(between)
            found.append({"role": "user", "content": said})
            found.append({"role": "assistant", "content": answered.removesuffix(after)})
        if self.turns(found) != turns:
            return ()
        return tuple((message["role"], message["content"]) for message in found)

    def _render(self, messages: list[dict[str, str]], answer: bool = False) -> str:
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer))

    def prompt(self, sample: Sample) -> Prompt:
        """The sample's prompt, up to the place where the answer is to be continued."""
        if sample.history.layout is Layout.TEXT:
            return self._text(sample)
        if sample.history.layout is not Layout.CHAT:
            before, after = self._render(messages_around(sample, _HERE), answer=True).split(_HERE)
        else:
            turn = [{"role": "user", "content": _HERE}]
            before = self._render(turn).removesuffix(self.turns(turn))
            opened = self._render(turn, answer=True).removeprefix(self._render(turn))
            after = self.turns([{"role": "user", "content": sample.question}]) + opened
        suffix = self.encode(after + sample.answer_start)
        question = sample.question
        if sample.history.layout is Layout.FOLLOW_UP:
            # Whoever searches for a question that leans on the one before may search for both.
            question = " ".join([*(content for _, content in sample.said), question])
        return Prompt(self.encode(before), sample.history.tokens, suffix, question)

    def _text(self, sample: Sample) -> Prompt:
        older, recent = sample.history.tokens[:-RECENT], sample.history.tokens[-RECENT:]
        return Prompt(np.array([self.sink], dtype=np.uint32), older, recent, self.decode(recent[-RECENT // 2 :]))
