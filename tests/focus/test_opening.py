"""How messages open: the lines that may ask, and the questions among them."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.focus.messages import USER, Message
from megacontext_vllm.focus.opening import Opening

STORY = "The rain had gone on for a week, and the river stood at the mill.\nNobody had seen the ferry."
WHO, WHERE = "Who was the harbour master of Elm Quay?", "Where is the lighthouse of Gorsey Point?"


class Read:
    """The opening of a message, as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str) -> None:
        tokens = np.array(tokenizer.encode(f"{text}\n\n{STORY}"), dtype=np.uint32)
        self.opening = Opening.of(tokens, Message(USER, 0, len(tokens)), len(tokens), tokenizer.decode)

        def part(start: int, stop: int) -> str:
            return str(tokenizer.decode(tokens[start:stop].tolist())).strip()

        self.lines = part(*self.opening.lines)
        self.questions = [part(*question) for question in self.opening.questions]


@pytest.mark.parametrize(
    ("asked", "questions"),
    [
        (f"{WHO} {WHERE}", [WHO, WHERE]),
        (f"{WHO}\n\n{WHERE}\n\nAnswer in one sentence.", [WHO, WHERE]),
        (
            "Find in the text:\n- harbour master of Elm Quay\n- lighthouse",
            ["- harbour master of Elm Quay", "- lighthouse"],
        ),
        ("Tell me who kept Elm Quay.\nFind the lighthouse.", ["Tell me who kept Elm Quay.", "Find the lighthouse."]),
        (f"{WHO} When did he die?", []),
        (WHO, []),
    ],
)
def test_the_lines_that_ask(tokenizer: PreTrainedTokenizerBase, asked: str, questions: list[str]) -> None:
    read = Read(tokenizer, asked)
    assert (read.lines, read.questions) == (asked, questions)
    assert read.opening.asks and read.opening.has_words


@pytest.mark.parametrize("title", ["The ferry of Elm Quay", "Fellow citizens of the Senate:", "from quay import ferry"])
def test_titles_do_not_ask(tokenizer: PreTrainedTokenizerBase, title: str) -> None:
    read = Read(tokenizer, title)
    assert read.lines == title and not read.opening.asks


def test_what_only_says_how_to_answer_counts_little(tokenizer: PreTrainedTokenizerBase) -> None:
    weights = Read(tokenizer, f"{WHO} Answer in one sentence.").opening.weights(0.1)
    assert weights[0] == 1 and weights[-1] == np.float32(0.1)
    assert not Read(tokenizer, "Answer in one sentence.").opening.has_words
