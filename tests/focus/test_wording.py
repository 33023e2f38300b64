"""What a question lists, and what of it is frame."""

import pytest

from megacontext_vllm.focus.wording import alternatives, asks_for_end, frame, pieces_of

LISTS = [
    ("Origami, macrame or falconry: which of these does it show?", ["Origami", "macrame", "falconry"]),
    ("Tea blending, felting, mosaic art, or gilding: which one?", ["Tea blending", "felting", "mosaic art", "gilding"]),
    ("Did he try tea blending, felting or ice carving?", ["blending", "felting", "ice"]),
    ("Tea blending, felting or ice carving: which one?", ["Tea blending", "felting", "ice carving"]),
    ("Which one did he try: tea blending, felting or ice carving?", ["tea blending", "felting", "ice carving"]),
    ("Wood turning, tea blending or ice carving", ["Wood turning", "tea blending", "ice carving"]),
    ("Is there a word. Did she buy apples, red pears or plums?", ["apples", "red pears", "plums"]),
    ("Did he sell or buy the horse?", ["sell", "buy"]),
    ("Is it in the cellar or in the attic?", ["cellar", "attic"]),
    ("Was it Anna, or John Smith, who left?", ["Anna", "John"]),
    ("Who is older: her aunt OR her uncle?", ["her aunt", "uncle"]),
]
NO_LISTS = [
    "Who has the order, the floor and the door?",
    "",
    "or",
    "Or who?",
    "Who is it, or",
    ", or ,",
    "Origami, macrame.",
]
FRAMES = [
    ("Which of these does the text speak about?", ["the text speak about"]),
    ("According to the document, who had the key?", ["According to the document"]),
    ("Based on the above passage: who?", ["Based on the above passage"]),
    ("Which towns are mentioned in the article?", ["mentioned in the article"]),
    ("What does this book say of Rowan?", ["this book say of"]),
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
    pieces = ["Or", "ig", "ami", ",", " mac", "ram", "e"]
    assert pieces_of(pieces, (0, 7)) == (0, 3)
    assert pieces_of(pieces, (8, 16)) == (4, 7)
    assert pieces_of(pieces, (3, 5)) == (1, 3)
    assert pieces_of(pieces, (15, 16)) == (6, 7)
    assert pieces_of(pieces, (16, 20)) == (7, 7)


@pytest.mark.parametrize("question", ["How does it end?", "What is the conclusion?", "Fix the code above.", "Go on!"])
def test_words_for_the_end(question: str) -> None:
    assert asks_for_end(question)


@pytest.mark.parametrize(
    "question", ["Who attends?", "What did the king say?", "Where is the key now?", "A lasting bend?"]
)
def test_no_words_for_the_end(question: str) -> None:
    assert not asks_for_end(question)
