"""A sample as a prompt: what stands around the history is the model's own chat template, whole, and nothing else."""

import numpy as np
import pytest

from megacontext_vllm.eval.prompt import RECENT, ChatFormat
from megacontext_vllm.eval.sample import History, Layout, Sample
from megacontext_vllm.eval.tasks import TASKS
from megacontext_vllm.eval.tasks.filler import Filler

TEXT = "The rain fell. The secret code of Mira is 58213. The rain went on and on."


def sample(chat: ChatFormat, layout: Layout, text: str = TEXT, said: tuple[tuple[str, str], ...] = ()) -> Sample:
    history, choices = History("h", chat.encode(text), layout), (" 1", " 2", " 3", " 58213")
    return Sample(
        "s", "t", history, "What is the code?", "The code is", " 58213", choices, evidence=((1, 2),), said=said
    )


def rendered(chat: ChatFormat, messages: list[dict[str, str]]) -> str:
    return str(chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def test_a_document_stands_in_the_users_message(chat: ChatFormat) -> None:
    prompt = chat.prompt(sample(chat, Layout.DOCUMENT))
    content = f"{TEXT}\n\nWhat is the code?"
    assert chat.decode(prompt.tokens) == rendered(chat, [{"role": "user", "content": content}]) + "The code is"
    assert prompt.overhead == len(prompt.tokens) - len(prompt.history)


def test_a_chat_is_continued(chat: ChatFormat) -> None:
    messages = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello to you."}] * 2
    prompt = chat.prompt(sample(chat, Layout.CHAT, chat.turns(messages)))
    question = {"role": "user", "content": "What is the code?"}
    assert chat.decode(prompt.tokens) == rendered(chat, [*messages, question]) + "The code is"
    # Every turn is part of the history, so that a method may leave any of it out.
    assert chat.decode(prompt.history).count("<|im_start|>") == 4


def test_a_follow_up_stands_behind_a_question_that_was_answered(chat: ChatFormat) -> None:
    said = (("user", "Who has a code?"), ("assistant", "Mira has one."))
    prompt = chat.prompt(sample(chat, Layout.FOLLOW_UP, said=said))
    turns = [("user", f"{TEXT}\n\nWho has a code?"), said[1], ("user", "What is the code?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert chat.decode(prompt.tokens) == rendered(chat, messages) + "The code is"
    assert chat.decode(prompt.history) == TEXT
    # A method that searches for words is given all of them.
    assert prompt.question == "Who has a code? Mira has one. What is the code?"


def test_what_a_tool_returned_stands_behind_the_question(chat: ChatFormat) -> None:
    said = (("assistant", "I will read the file."),)
    prompt = chat.prompt(sample(chat, Layout.TOOL_RESULT, said=said))
    turns = [("user", "What is the code?"), said[0], ("tool", TEXT)]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert chat.decode(prompt.tokens) == rendered(chat, messages) + "The code is"
    assert chat.decode(prompt.history) == TEXT and prompt.question == "What is the code?"


def test_turns_and_messages_are_each_others_inverse(chat: ChatFormat, filler: Filler) -> None:
    for sample in TASKS["chat"].samples(filler, chat, 8192, 0):
        messages = [{"role": role, "content": content} for role, content in sample.history.messages]
        assert len(messages) >= 4 and chat.turns(messages) == chat.decode(sample.history.tokens)
        assert any(sample.answer in message["content"] for message in messages)
    assert chat.messages("no turns at all") == ()


def test_text_is_continued_behind_one_raw_token(chat: ChatFormat) -> None:
    history = History("h", np.arange(100, 100 + 3 * RECENT, dtype=np.uint32), Layout.TEXT)
    prompt = chat.prompt(Sample("s", "t", history, target=np.array([5], dtype=np.uint32)))
    assert prompt.prefix.tolist() == [chat.tokenizer.convert_tokens_to_ids("<|endoftext|>")]
    np.testing.assert_array_equal(prompt.tokens[1:], history.tokens)
    assert len(prompt.suffix) == RECENT and prompt.question in chat.decode(history.tokens)


@pytest.mark.parametrize("change", ["candidates", "evidence", "question"])
def test_a_sample_that_makes_no_sense_is_caught(chat: ChatFormat, change: str) -> None:
    good = sample(chat, Layout.DOCUMENT)
    bad = {"candidates": (" 1", " 2", " 3", " 4"), "evidence": ((5, 5),), "question": ""}[change]
    with pytest.raises(AssertionError):
        Sample(
            **{
                name: bad if name == change else getattr(good, name)
                for name in ("id", "task", "history", "question", "answer_start", "answer", "candidates", "evidence")
            }
        )
