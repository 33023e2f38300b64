"""Who says what, in the chat templates of many models, with a toy tokenizer of one token per word."""

import re

import numpy as np
import pytest

from megacontext_vllm.focus.messages import ASSISTANT, SYSTEM, TOOL, USER, Message, find_messages

# fmt: off
SPECIAL = [
    "<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eot|>", "<s>", "</s>", "[INST]",
    "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|observation|>",
    "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
    "<|END_OF_TURN_TOKEN|>", "<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|start|>",
    "<|message|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|im_sep|>", "<filename>", "<|image|>",
]
# fmt: on
PIECE = re.compile("|".join(map(re.escape, SPECIAL)) + r"|\n+| ?\w+| ?[^\w\s]| ")


def said(prompt: str) -> tuple[list[tuple[str, str]], str]:
    """(role, text) of each message, and the text up to the end of the instructions."""
    pieces = PIECE.findall(prompt)
    ids = {piece: i for i, piece in enumerate(dict.fromkeys([*SPECIAL, *pieces]))}
    texts = list(ids)

    def decode(tokens: list[int]) -> str:
        return "".join(texts[i] for i in tokens)

    tokens = np.array([ids[piece] for piece in pieces], dtype=np.uint32)
    messages, instructions = find_messages(tokens, frozenset(range(len(SPECIAL))), decode)
    assert all(message.opened for message in messages)
    return (
        [(message.role, decode(tokens[message.start : message.end].tolist()).strip()) for message in messages],
        decode(tokens[:instructions].tolist()),
    )


CALL, RESULT = 'find {"name": "mill"}', "The mill is red. It is old."
TALK = [(SYSTEM, "Be brief and kind."), (USER, "Is the mill red?"), (ASSISTANT, CALL), (TOOL, RESULT)]
TALK += [(ASSISTANT, "It is."), (USER, "Why?")]


def alike(turn: str, **other: str) -> dict[str, str]:
    """How each turn is written, where all are alike but for what the roles are called."""
    return {role: turn.replace("ROLE", other.get(role, role)) for role in (SYSTEM, USER, ASSISTANT, TOOL, "call")}


TEMPLATES: dict[str, dict[str, str]] = {
    "chatml": alike("<|im_start|>ROLE\nTEXT<|im_end|>\n", call=ASSISTANT),
    "llama 3": alike("<|header|>ROLE<|/header|>\n\nTEXT<|eot|>", tool="ipython", call=ASSISTANT),
    "gemma": alike("<start_of_turn>ROLE\nTEXT<end_of_turn>\n", assistant="model", call="model"),
    "glm": alike("<|ROLE|>\nTEXT", tool="observation", call=ASSISTANT),
    "phi 3": alike("<|ROLE|>\nTEXT<|end|>\n", tool="observation", call=ASSISTANT),
    "phi 4": alike("<|im_start|>ROLE<|im_sep|>TEXT<|im_end|>", call=ASSISTANT),
    "granite": alike("<|start_of_role|>ROLE<|end_of_role|>TEXT<|end_of_text|>\n", call=ASSISTANT),
    "harmony": {
        **alike("<|start|>ROLE<|message|>TEXT<|end|>", system="developer"),
        ASSISTANT: "<|start|>assistant<|channel|>final<|message|>TEXT<|end|>",
        "call": "<|start|>assistant<|channel|>commentary to=functions.find<|constrain|>json<|message|>TEXT<|call|>",
        TOOL: "<|start|>functions.find to=assistant<|channel|>commentary<|message|>TEXT<|end|>",
    },
    "deepseek": {
        SYSTEM: "TEXT",
        USER: "<｜User｜>TEXT",
        "call": "<｜Assistant｜><｜tool▁calls▁begin｜>TEXT<｜end▁of▁sentence｜>",
        TOOL: "<｜tool▁output▁begin｜>TEXT<｜tool▁output▁end｜>",
        ASSISTANT: "<｜Assistant｜>TEXT<｜end▁of▁sentence｜>",
    },
    "cohere": {
        SYSTEM: "<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>TEXT<|END_OF_TURN_TOKEN|>",
        USER: "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>TEXT<|END_OF_TURN_TOKEN|>",
        ASSISTANT: "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>TEXT<|END_OF_TURN_TOKEN|>",
    },
    "mistral": {
        SYSTEM: "<s>[AVAILABLE_TOOLS] TEXT[/AVAILABLE_TOOLS]",
        USER: "[INST] TEXT[/INST]",
        "call": "[TOOL_CALLS] TEXT</s>",
        TOOL: "[TOOL_RESULTS] TEXT[/TOOL_RESULTS]",
        ASSISTANT: " TEXT</s>",
    },
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(name: str) -> None:
    written = TEMPLATES[name]
    turns = [(role, text) for role, text in TALK if TOOL in written or text not in (CALL, RESULT)]
    prompt = "".join(written["call" if text == CALL else role].replace("TEXT", text) for role, text in turns)
    begun = written[ASSISTANT].partition("TEXT")[0].rstrip(" ")  # the answer to come
    messages, instructions = said(prompt + begun)
    if name == "deepseek":  # nothing says that its first message is the system's
        assert messages[0] == ("", TALK[0][1]) and messages[1:] == TALK[1:] and not instructions
    else:
        assert messages == turns and instructions.endswith(TALK[0][1])


def test_what_a_tool_answered_in_the_name_of_the_user() -> None:
    answered = "<tool_response>\nThe mill is red.\n</tool_response>"
    prompt = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>user\n" + answered + "<|im_end|>\n<|im_start|>assistant\n"
    assert said(prompt)[0] == [(USER, "Is it?"), (TOOL, answered)]


IMAGE = "<|image|><|image|>"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "deepseek"])
def test_a_message_that_begins_with_a_special_token(name: str) -> None:
    """An image, or the name of a file."""
    written, turns = TEMPLATES[name], [turn for turn in TALK if turn[1] not in (CALL, RESULT)]
    parts = [written[role].replace("TEXT", IMAGE * (role == USER) + text) for role, text in turns]
    assert [(role, text.replace(IMAGE, "")) for role, text in said("".join(parts))[0]] == turns


@pytest.mark.parametrize("name", ["chatml", "llama 3", "phi 4", "granite", "harmony"])
def test_of_a_role_that_nobody_knows(name: str) -> None:
    """It is somebody's message, and no part of the one before."""
    written = TEMPLATES[name]
    asked = written[USER].replace("user", "customer").replace("TEXT", "Where is it?")
    messages, _ = said(written[USER].replace("TEXT", "Is it red?") + written[ASSISTANT].replace("TEXT", "No.") + asked)
    assert messages[:2] == [(USER, "Is it red?"), (ASSISTANT, "No.")]
    assert messages[2][0] in ("", TOOL) and messages[2][1].endswith("Where is it?") and len(messages) == 3


@pytest.mark.parametrize("name", ["chatml", "llama 3", "gemma", "phi 4", "granite"])
@pytest.mark.parametrize("inside", ["Both <|user|> and <|assistant|> are.", "Use <|observation|> or [INST] here."])
def test_what_looks_like_the_turns_of_others_is_text(name: str, inside: str) -> None:
    written = TEMPLATES[name]
    prompt = written[USER].replace("TEXT", inside + " Which are?") + written[ASSISTANT].partition("TEXT")[0]
    assert said(prompt)[0] == [(USER, inside + " Which are?")]


def test_a_file_that_begins_like_a_turn_is_none() -> None:
    asked = "model\ny = 2\n\nWhat is y?"
    assert said(f"<filename>tool\nx = 1\n<filename>{asked}")[0][-1] == ("", asked)
    assert said("What is y?<|end_of_text|>\nassistant:")[0] == [("", "What is y?")], "marks that are no special tokens"


@pytest.mark.parametrize("word", ["user", "Model", "tool"])
def test_a_message_that_is_the_name_of_a_role(word: str) -> None:
    for name, written in TEMPLATES.items():
        turns = [(USER, "Which is it?"), (ASSISTANT, "I do not know."), (USER, word)]
        prompt = "".join(written[role].replace("TEXT", text) for role, text in turns)
        assert said(prompt + written[ASSISTANT].partition("TEXT")[0].rstrip(" "))[0][:2] == turns[:2], name


def test_a_message_that_begins_with_marks() -> None:
    for marks in ("=" * 20, "- " * 20, "| | |"):
        assert said(f"<|user|>\n{marks} Which is it?<|assistant|>")[0] == [(USER, f"{marks} Which is it?")]


@pytest.mark.parametrize("role", [USER, TOOL])
def test_special_tokens_in_a_text_do_not_end_its_message(role: str) -> None:
    text = "See <filename>a.py and <|end_of_text|>\nThe next one<filename>b.py is long."
    prompt = f"<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>{role}\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert said(prompt)[0] == [(USER, "Which?"), (role, text)]


def test_where_nothing_says_whose_turn_it_is() -> None:
    assert said("One text. And more of it.") == ([("", "One text. And more of it.")], "")
    parts = [("", "One text."), ("", "And another.")]
    assert said("One text.<|end_of_text|>And another.") == (parts, "")
    for nothing in ("", "\n", "<s>", "?!", "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"):
        assert said(nothing)[0] == [], nothing


def test_an_answer_that_has_begun() -> None:
    begun = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>assistant\nI think that it"
    assert said(begun)[0] == [(USER, "Is it?"), (ASSISTANT, "I think that it")]


def test_the_name_of_who_is_to_answer_is_no_message() -> None:
    prompt = "<|im_start|>user\nIs it?<|im_end|>\n<|im_start|>narrator\n"
    assert said(prompt)[0] == [(USER, "Is it?")]


@pytest.mark.parametrize("every", [100_000_000, 500, 20])
def test_a_million_tokens_of_text_with_special_ones_among_them(every: int) -> None:
    """The special tokens of a text are no reason to read all of it."""
    texts = [*SPECIAL, "user", "\n", "assistant", "w"]
    turn, end = texts.index("<|im_start|>"), texts.index("<|im_end|>")
    user, newline, assistant, word = range(len(SPECIAL), len(texts))
    tokens = np.full(1_000_000, word, dtype=np.uint32)
    tokens[every::every] = texts.index("<filename>")
    tokens[:3], tokens[-8:] = [turn, user, newline], [word, end, newline, turn, assistant, newline, word, word]
    decoded = 0

    def decode(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return "".join(texts[i] for i in ids)

    messages, _ = find_messages(tokens, frozenset(range(len(SPECIAL))), decode)
    assert decoded < 40_000
    assert messages == [Message(USER, 3, 1_000_000 - 7), Message(ASSISTANT, 1_000_000 - 2, 1_000_000)]
