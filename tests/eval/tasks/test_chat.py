"""A conversation as the reader's template writes it."""

import re

from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import Layout
from megacontext_vllm.eval.tasks.chat import Chat
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.remarks import FAMILIES

TURN = re.compile(r"<\|im_start\|>(user|assistant)\n(.*?)<\|im_end\|>\n", re.DOTALL)


def test_turns_alternate_and_are_whole(filler: Filler, chat: ChatFormat) -> None:
    for length in (4096, 65_536):
        [history] = {sample.history for sample in Chat().samples(filler, chat, length, 1)}
        assert history.layout is Layout.CHAT
        text = chat.decode(history.tokens)
        turns = TURN.findall(text)
        assert "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns) == text
        assert [role for role, _ in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert chat.turns([{"role": role, "content": content} for role, content in turns]) == text
        users = [content for role, content in turns if role == "user"]
        assert len(users) >= 10 and min(map(len, users)) > 100


def test_the_user_says_it_in_a_turn_of_his_own(filler: Filler, chat: ChatFormat) -> None:
    for seed in range(6):
        for sample in Chat().samples(filler, chat, 8192, seed):
            [(start, stop)] = sample.evidence
            said = chat.decode(sample.history.tokens[start:stop])
            before = chat.decode(sample.history.tokens[:start])
            assert before.rpartition("<|im_start|>")[2].startswith("user\n") and "<|im_end|>" not in said
            assert re.search(r"\b([Mm]y|I)\b", said) and sample.answer in said
            assert chat.decode(sample.history.tokens[stop : stop + 2]) == "<|im_end|>\n"


def test_the_prompt_is_one_conversation(filler: Filler, chat: ChatFormat) -> None:
    sample = Chat().samples(filler, chat, 4096, 0)[2]
    text = chat.decode(chat.prompt(sample).tokens)
    turns = TURN.findall(text)
    assert turns[-1] == ("user", sample.question) and turns[-2][0] == "assistant"
    assert text.endswith(f"<|im_start|>assistant\n{sample.answer_start}")


def test_every_family_comes_up(filler: Filler, chat: ChatFormat) -> None:
    forms = {re.sub(r"\w", "x", Chat().samples(filler, chat, 4096, seed)[0].answer) for seed in range(12)}
    assert {" xx:xx", " xxxx"} < forms and len(FAMILIES) == 3
