"""Facts in real text, the whole way from the question to what is shown."""

from itertools import zip_longest

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.working_context import Kind

PLACES = ("granite bridge", "copper pavilion", "walnut library", "marble fountain")
AT = (9_000, 31_000, 52_000, 70_000)
LENGTH, WINDOW = 80_000, 1_024


@pytest.fixture(scope="module")
def pieces(tokenizer: PreTrainedTokenizerBase, text: str) -> list[list[int]]:
    """A text in pieces of whole sentences."""
    tokens = tokenizer(text[: LENGTH * 6], add_special_tokens=False, verbose=False)["input_ids"][:LENGTH]
    stop = tokenizer(".", add_special_tokens=False)["input_ids"][0]
    return [piece.tolist() for piece in np.split(np.array(tokens), [tokens.index(stop, at) + 1 for at in AT])]


def plant(tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]], says: list[str]) -> list[list[int]]:
    """``pieces`` of a text, a sentence after each as long as there are any."""
    ids = [tokenizer(said, add_special_tokens=False)["input_ids"] for said in says]
    return [[*piece, *said] for piece, said in zip_longest(pieces, ids, fillvalue=[])]


@pytest.fixture(scope="module")
def told(tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]]) -> list[list[int]]:
    """One thing, told four times."""
    says = [f" The meeting point of the rowing club moved to the {place}." for place in PLACES]
    return plant(tokenizer, pieces, says)


def shown(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]], asked: str, between: str = ""
) -> list[str]:
    """The texts that are raw before the question, each in one piece; ``between``: what stands before it, too."""
    history = [token for piece in told for token in piece]
    # Tokens of a chat, as the template would make them of so long a text.
    texts = ("<|im_start|>user\n", f"{between}\n\n{asked}<|im_end|>\n")
    head, tail = (tokenizer(part)["input_ids"] for part in texts)
    tokens = np.array([*head, *history, *tail], dtype=np.uint32)
    entries = focus.allocate(focus.score(tokens), WINDOW, gists=False).entries
    pieces: list[list[int]] = [[]]
    for entry in entries:
        if entry.kind is Kind.RAW:
            pieces[-1] += tokens[entry.start : entry.end].tolist()
        else:
            pieces.append([])
    pieces[-1] = pieces[-1][: -len(tail)]
    return [tokenizer.decode(piece) for piece in pieces]


@pytest.mark.parametrize("special", ["", " Give the <filename>."])
def test_the_last_statement_and_its_surroundings(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]], special: str
) -> None:
    """Also in a text that has what is a special token elsewhere."""
    asked = "Where is the meeting point of the rowing club now?"
    now = "".join(shown(focus, tokenizer, told, asked, special))
    assert [place in now for place in PLACES] == [False, False, False, True]


@pytest.mark.parametrize("reply", ["The meeting point of the rowing club is the granite bridge.", "I cannot say."])
def test_a_question_that_was_asked_before_does_not_tell_it_anew(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]], reply: str
) -> None:
    asked = "Where is the meeting point of the rowing club?"
    turn = f"\n\n{asked}<|im_end|>\n<|im_start|>assistant\n{reply}<|im_end|>\n<|im_start|>user"
    now = "".join(shown(focus, tokenizer, told, asked.replace("?", " now?"), turn))
    assert all(place in now for place in PLACES)


def test_a_text_that_is_told_backwards(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]]
) -> None:
    says = [f" In {2024 - i} the meeting point of the rowing club was the {place}." for i, place in enumerate(PLACES)]
    for one, last in ((says, False), (says[::-1], True)):
        asked = "Where is the meeting point of the rowing club now?"
        now = "".join(shown(focus, tokenizer, plant(tokenizer, pieces, one), asked))
        assert [place in now for place in PLACES] == [True, *([not last] * 3)]


@pytest.mark.parametrize(
    "asked",
    ["Where was the meeting point of the rowing club?", "Where was the meeting point of the rowing club until now?"],
)
def test_all_of_them_where_the_question_is_not_of_now(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]], asked: str
) -> None:
    ever = "".join(shown(focus, tokenizer, told, asked))
    assert all(place in ever for place in PLACES)


def test_a_subject_is_no_fact_that_changed(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, told: list[list[int]]
) -> None:
    """What is spoken of all over a history is not hidden but for its last mention."""
    said = tokenizer(" The rowing club met at the meeting point.", add_special_tokens=False)["input_ids"]
    piece = told[0][:5_000]
    often = [token for start in range(0, 5_000, 200) for token in [*piece[start : start + 200], *said]]
    asked = "Where is the meeting point of the rowing club now?"
    now = "".join(shown(focus, tokenizer, [often, *told[1:2]], asked))
    assert now.count("rowing club") > 10


def test_each_step_to_the_answer_is_shown_with_its_text(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]]
) -> None:
    """The second one has no word of the question; as much stands around it as around the first."""
    says = [" Dara gave the parcel to Mirabel.", "", " What Mirabel got was put in the tin cabin."]
    texts = shown(focus, tokenizer, plant(tokenizer, pieces, says), "Where is the parcel from Dara now?")
    lengths = [len(text) for says_it in (says[0], says[2]) for text in texts if says_it in text]
    assert len(lengths) == 2 and min(lengths) > 1_000 and max(lengths) < 2 * min(lengths)


@pytest.mark.parametrize(("asked", "all_of_them"), [("most often", True), ("in the morning", False)])
def test_all_of_them_where_the_question_asks_for_many(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, pieces: list[list[int]], asked: str, all_of_them: bool
) -> None:
    """One place has all of its words, but is another matter."""
    says = [f" The potter made a {what}." for what in ("yellow jar", "brown bowl", "yellow jar")]
    says.insert(2, " A vessel, as seemed good to the potter to make in the morning, and most often it is.")
    now = "".join(shown(focus, tokenizer, plant(tokenizer, pieces, says), f"Which vessel did the potter make {asked}?"))
    assert "as seemed good" in now
    assert (now.count("yellow jar"), now.count("brown bowl")) == ((2, 1) if all_of_them else (0, 0))
