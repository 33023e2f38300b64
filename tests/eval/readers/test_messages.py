"""The messages of a prompt are what the template renders to the prompt's own tokens."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from megacontext_vllm.errors import ReaderError
from megacontext_vllm.eval.context import Context, Gap, Gist, Raw
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.readers.messages import to_messages
from megacontext_vllm.eval.sample import History, Layout, Sample

TURNS = (("user", "Hello, I am Mira."), ("assistant", "Hello Mira!"), ("user", "It rains."), ("assistant", "It does."))

SAID = {
    Layout.FOLLOW_UP: (("user", "Is Mira here?"), ("assistant", "She is.")),
    Layout.TOOL_RESULT: (("assistant", "I will look."),),
}


@pytest.fixture(scope="module")
def chat(model_dir: Path) -> ChatFormat:
    return ChatFormat(AutoTokenizer.from_pretrained(model_dir))


def question(history: History) -> Sample:
    names, said = (" Mira", " Ida", " Ada", " Eva"), SAID.get(history.layout, ())
    return Sample("s", "t", history, "Who am I?", "You are", " Mira", names, ((0, 3),), said=said)


def conversation(chat: ChatFormat, messages: tuple[tuple[str, str], ...] = TURNS) -> Sample:
    text = chat.turns([{"role": role, "content": content} for role, content in TURNS])
    return question(History("h", chat.encode(text), Layout.CHAT, messages))


def document(chat: ChatFormat, text: str, layout: Layout = Layout.DOCUMENT) -> Sample:
    return question(History("h", chat.encode(text), layout))


@pytest.mark.parametrize("layout", [layout for layout in Layout if layout is not Layout.TEXT])
@pytest.mark.parametrize("whole", [True, False])
def test_the_template_renders_them_to_the_prompt(chat: ChatFormat, text: str, layout: Layout, whole: bool) -> None:
    sample = conversation(chat) if layout is Layout.CHAT else document(chat, text[5000:7000], layout)
    prompt = chat.prompt(sample)
    context = None if whole else Context((Raw(0, len(prompt.history)),), ())
    rendered = chat.tokenizer.apply_chat_template(
        to_messages(chat, prompt, context, sample), tokenize=False, add_generation_prompt=True
    )
    assert rendered + sample.answer_start == chat.decode(prompt.tokens)


def test_pieces_of_a_document(chat: ChatFormat) -> None:
    sample = document(chat, "one two three four five six")
    prompt = chat.prompt(sample)
    context = Context((Raw(0, 2), Gap(2, 4), Raw(4, 5)), tuple(chat.encode(" [...]").tolist()))
    assert to_messages(chat, prompt, context, sample) == [
        {"role": "user", "content": "one two [...] five\n\nWho am I?"}
    ]


def test_a_character_across_two_pieces(chat: ChatFormat) -> None:
    """Of 𓂀's bytes no token has all, so that pieces decoded alone would be broken characters."""
    sample = document(chat, "𓂀 𓂀")
    length = len(sample.history.tokens)
    assert length > 3
    context = Context(tuple(Raw(i, i + 1) for i in range(length)), ())
    (message,) = to_messages(chat, chat.prompt(sample), context, sample)
    assert message["content"] == "𓂀 𓂀\n\nWho am I?"


def test_part_of_a_conversation_is_one_message_without_marks(chat: ChatFormat) -> None:
    sample = conversation(chat)
    prompt = chat.prompt(sample)
    length = len(prompt.history)
    (message,) = to_messages(chat, prompt, Context((Raw(0, length - 3),), ()), sample)
    assert message["role"] == "user" and "<|im_" not in message["content"]
    assert "Hello, I am Mira." in message["content"] and message["content"].endswith("\n\nWho am I?")


def test_a_conversation_whose_turns_are_not_known(chat: ChatFormat) -> None:
    sample = conversation(chat, messages=())
    (message,) = to_messages(chat, chat.prompt(sample), None, sample)
    assert "Hello Mira!" in message["content"] and "<|im_" not in message["content"]


def test_gists_cannot_be_sent(chat: ChatFormat) -> None:
    sample = document(chat, "one two three four five six")
    context = Context((Gist(0, 4, np.zeros(8, dtype=np.float32)),), ())
    with pytest.raises(ReaderError, match="transformers reader"):
        to_messages(chat, chat.prompt(sample), context, sample)


def test_nothing_to_continue(chat: ChatFormat, text: str) -> None:
    history = History("h", chat.encode(text[:4000]), Layout.TEXT)
    sample = Sample("s", "t", history, target=history.tokens[:5])
    with pytest.raises(ReaderError, match="continu"):
        to_messages(chat, chat.prompt(sample), None, sample)
