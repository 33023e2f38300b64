"""How messages end: what asks, what belongs to it, and what is the end of a text."""

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.focus.closing import Closing
from megacontext_vllm.focus.messages import USER, Message

STORY = (
    "The rain had gone on for a week, and the river stood at the second step of the mill, where sacks were kept.\n\n"
    "Nobody on the other bank had seen the ferry since Sunday, and the baker began to count what flour he had left.\n\n"
)
"""Two paragraphs that ask nothing and say nothing of how to answer."""
WHO, WHERE = "Who was the harbour master of Elm Quay?", "Where is the lighthouse of Gorsey Point?"
TRACEBACK = 'Traceback (most recent call last):\n  File "run.py", line 12, in <module>\nQuayError: berth 17 is closed'


class Read:
    """The closing of a message, as text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, *, opening_asks: bool = False) -> None:
        tokens = np.array(tokenizer.encode(text), dtype=np.uint32)

        def part(start: int, stop: int) -> str:
            return str(tokenizer.decode(tokens[start:stop].tolist())).strip()

        closing = Closing.of(tokens, Message(USER, 0, len(tokens)), tokenizer.decode, 64, opening_asks=opening_asks)
        self.asks = closing.asks.text.strip()
        begin = closing.beside[closing.about - 1].start if closing.about else closing.start
        assert begin <= closing.start
        self.shown = part(begin, closing.end)
        self.beside = {part(start, stop): weight for start, stop, weight in closing.beside}
        self.questions = [part(*question) for question in closing.questions]
        self.about = [part(start, stop) for start, stop, _ in closing.beside[: closing.about]]


@pytest.fixture(params=[STORY, STORY * 20], ids=["short", "long"])
def story(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("apart", ["\n", "\n\n"])
def test_questions_below_each_other_are_looked_for_one_by_one(
    tokenizer: PreTrainedTokenizerBase, story: str, apart: str
) -> None:
    read = Read(tokenizer, f"{story}1. {WHO}\n2. {WHERE}")
    assert read.questions == [WHO, WHERE] and read.shown.startswith(f"1. {WHO}")
    read = Read(tokenizer, f"{story}{WHO} {WHERE}{apart}Answer in one sentence.")
    assert read.questions == [WHO, WHERE] and read.shown == f"{WHO} {WHERE}{apart}Answer in one sentence."
    assert Read(tokenizer, story + WHO).questions == []


def test_a_question_that_leans_on_the_one_above_is_none_of_its_own(
    tokenizer: PreTrainedTokenizerBase, story: str
) -> None:
    read = Read(tokenizer, f"{story}{WHO} When did he die?")
    assert read.questions == [] and read.asks == f"{WHO} When did he die?"
    read = Read(tokenizer, f"{story}{WHO}\nWhen did he die?")
    assert read.questions == [] and read.beside[WHO] == 1.0 and read.shown.endswith(f"{WHO}\nWhen did he die?")


def test_what_ends_in_a_question_stays_a_text(tokenizer: PreTrainedTokenizerBase, story: str) -> None:
    read = Read(tokenizer, f"{story}Would the flour last until the ferry came again?\n\n{WHO}")
    assert (read.asks, read.shown, read.beside, read.questions) == (WHO, WHO, {}, [])


OPTIONS = "A) Jonas Carver\nB) Amos Reed of Elm\nC) Orin Merrow of Hale"


@pytest.mark.parametrize("how", ["", "\nAnswer with the letter only."])
def test_answers_to_choose_from_belong_to_their_question(
    tokenizer: PreTrainedTokenizerBase, story: str, how: str
) -> None:
    read = Read(tokenizer, f"{story}{WHO}\n{OPTIONS}{how}")
    assert read.asks == WHO and read.shown == f"{WHO}\n{OPTIONS}{how}"
    assert read.beside == dict.fromkeys(OPTIONS.split("\n"), 1.0) and read.about == []
    # A list that nobody asks about is the end of a text, and its last line as doubtful as any other.
    read = Read(tokenizer, f"{story}{OPTIONS}")
    assert read.asks == "C) Orin Merrow of Hale" and read.about == OPTIONS.split("\n")[1::-1]


RULES = "Rules:\n- Answer in English only.\n- Never mention the mill.\n- Use at most 20 words.\n- Cite what you read."


def test_rules_belong_to_their_question(tokenizer: PreTrainedTokenizerBase, story: str) -> None:
    read = Read(tokenizer, f"{story}{WHO}\n\n{RULES}")
    assert read.asks.startswith(WHO) and read.shown == f"{WHO}\n\n{RULES}"
    recipe = "- Take the flour from the sacks.\n- Put it into the oven of the mill.\n- Offer the loaves to the baker."
    read = Read(tokenizer, story + recipe)
    assert read.asks == "- Offer the loaves to the baker." and len(read.about) == 2, "rules of something else"
    # What is wanted may be written as one of them.
    wanted = "- Show the harbour master of Elm Quay.\n- Keep it short.\n- Answer in one sentence."
    assert Read(tokenizer, story + wanted).asks == "- Show the harbour master of Elm Quay."


@pytest.mark.parametrize("asked", ["Why does this fail?", "How do I fix it? Answer briefly.", "Can you help?"])
def test_a_question_that_only_points_takes_along_what_it_points_at(
    tokenizer: PreTrainedTokenizerBase, story: str, asked: str
) -> None:
    read = Read(tokenizer, f"{story}{TRACEBACK}\n\n{asked}")
    assert read.asks == asked and read.shown == f"{TRACEBACK}\n\n{asked}"
    assert read.about[0] == "QuayError: berth 17 is closed"
    read = Read(tokenizer, f"{story}I get this error:\n\n{TRACEBACK}\n\nWhy does the ferry of Elm Quay fail?")
    assert read.shown == "Why does the ferry of Elm Quay fail?" and not read.about, "it has words of its own"


def test_what_stands_behind_a_question_that_points_may_be_what_it_points_at(
    tokenizer: PreTrainedTokenizerBase, story: str
) -> None:
    read = Read(tokenizer, f"{story}Why does this fail?\n\n{TRACEBACK}")
    assert read.asks == "QuayError: berth 17 is closed" and read.shown == f"Why does this fail?\n\n{TRACEBACK}"
    assert Read(tokenizer, story).asks == story.strip().split("\n\n")[-1]


def test_a_wish_in_several_paragraphs(tokenizer: PreTrainedTokenizerBase, story: str) -> None:
    wish = "I need the name of the harbour master of Elm Quay."
    for behind in ("My editor is happy with one sentence.\n\nThanks!", "The editor wants it by Friday. Can you help?"):
        read = Read(tokenizer, f"{story}{wish}\n\n{behind}")
        assert read.about == [wish] and read.shown == f"{wish}\n\n{behind}"


def test_what_is_no_question_in_form_is_one_in_front_of_how_to_answer(
    tokenizer: PreTrainedTokenizerBase, story: str
) -> None:
    for asked in ("Harbour master of Elm Quay", "Nenne den Hafenmeister von Ulmenkai."):
        read = Read(tokenizer, f"{story}{asked}\n\nAnswer in one sentence.")
        assert read.asks == asked and read.shown.endswith(f"{asked}\n\nAnswer in one sentence.")
        # Where the message begins with a question, its end is a text's.
        read = Read(tokenizer, f"{story}{asked}\n\nAnswer in one sentence.", opening_asks=True)
        assert read.asks == "Answer in one sentence." and not read.about


def test_without_words_nothing_asks(tokenizer: PreTrainedTokenizerBase) -> None:
    for text in ("", "\n\n", "?!", "...\n---"):
        read = Read(tokenizer, text)
        assert (read.asks, read.shown, read.beside, read.questions, read.about) == ("", "", {}, [], [])
