"""What a question lists, and what of it is frame."""

import pytest

from megacontext_vllm.focus.wording import alternatives, asks_for_end, frame, pieces_of

LISTS = [
    ("Origami, macrame or falconry: which of these does it show?", ["Origami", "macrame", "falconry"]),
    ("Tea blending, felting, mosaic art, or gilding: which one?", ["Tea blending", "felting", "mosaic art", "gilding"]),
    ("He tried. Which one was it: tea blending, felting OR ice carving?", ["tea blending", "felting", "ice carving"]),
    ("Who is older: her aunt or her uncle?", ["her aunt", "her uncle"]),
]
NO_LISTS = [
    # no colon: nothing says where the things end, and a thing that stands nowhere may be meant in other words
    "Did Rowan sell or rent the mill?",
    "Does Rowan have a pet or something?",
    "Did she buy apples, red pears or plums?",
    "Hello, did Marta win or lose the race?",
    "In Quillhaven, did Anna sell or rent the mill?",
    # a colon that parts no list from what asks
    "One question: did Marta win or lose?",
    "Hello: who did win or lose?",
    "Marta or Anna: tell me about her.",
    "All that is ever said of a very long thing or not: who?",
    "Who has the order, the floor and the door?",
    *("", "or", "Or who?", "Who is it, or", ", or ,", ": or :", "Origami, macrame.", "Which: , or ,?"),
]
FRAMES = [
    ("Which of these does the text speak about?", ["does the text speak about"]),
    ("According to the document, who had the key?", ["According to the document"]),
    ("Based on the above passage: who?", ["Based on the above passage"]),
    ("Which towns are mentioned in the article?", ["mentioned in the article"]),
    ("What does this book say of Rowan?", ["does this book say of"]),
    ("Which fruits did the text mention?", ["did the text mention"]),
    ("When is the book report due?", []),
    ("Where is the conversation state saved?", []),
    ("Why does the story teller laugh?", []),
    ("Who wrote the letter that lies in the book?", []),
    ("What text did the king say aloud?", []),
    ("Does the context of it matter?", []),
]


@pytest.mark.parametrize(("question", "things"), LISTS, ids=[question for question, _ in LISTS])
def test_each_thing_of_a_list_is_found(question: str, things: list[str]) -> None:
    assert [question[slice(*span)].strip() for span in alternatives(question)] == things


@pytest.mark.parametrize("question", NO_LISTS)
def test_what_lists_nothing_has_no_alternatives(question: str) -> None:
    assert alternatives(question) == []


@pytest.mark.parametrize(("question", "frames"), FRAMES, ids=[question for question, _ in FRAMES])
def test_what_speaks_of_the_text_is_frame(question: str, frames: list[str]) -> None:
    assert [question[slice(*span)] for span in frame(question)] == frames


def test_pieces_of_characters() -> None:
    ends = [2, 4, 7, 8, 12, 15, 16]  # Or ig ami , _mac ram e
    assert pieces_of(ends, (0, 7)) == (0, 3)
    assert pieces_of(ends, (8, 16)) == (4, 7)
    assert pieces_of(ends, (3, 5)) == (1, 3)
    assert pieces_of(ends, (15, 16)) == (6, 7)
    assert pieces_of(ends, (16, 20)) == (7, 7)
    assert pieces_of([0, 0, 1, 4], (0, 1)) == (2, 3), "the bytes before the last one of a character are nothing yet"


@pytest.mark.parametrize(
    "question", ["How does it end?", "What is the conclusion?", "Fix the code above.", "Go on!", "Complete it."]
)
def test_words_for_the_end(question: str) -> None:
    assert asks_for_end(question)


@pytest.mark.parametrize(
    "question", ["Who attends?", "What did the king say?", "Where is the key now?", "A lasting bend?"]
)
def test_no_words_for_the_end(question: str) -> None:
    assert not asks_for_end(question)
