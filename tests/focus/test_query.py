"""Finding the question: ChatML, Llama-3, Mistral and plain prompts, with a toy tokenizer of one token per word."""

import re

import numpy as np
import pytest

from megacontext_vllm.focus.query import Query, find_query

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|begin|>", "<|header|>", "<|/header|>", "<|eot|>", "[INST]", "[/INST]"]
PIECE = re.compile("|".join(map(re.escape, SPECIAL)) + r"|\n+| ?\w+| ?[^\w\s]| ")


class Toy:
    """Grows its vocabulary as it encodes; decode is the exact inverse."""

    def __init__(self) -> None:
        self.pieces = list(SPECIAL)
        self.ids = {piece: i for i, piece in enumerate(SPECIAL)}

    def encode(self, text: str) -> np.ndarray:
        for piece in PIECE.findall(text):
            if piece not in self.ids:
                self.ids[piece] = len(self.pieces)
                self.pieces.append(piece)
        return np.array([self.ids[piece] for piece in PIECE.findall(text)], dtype=np.uint32)

    def decode(self, ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in ids)

    def find(self, prompt: str, **options: int) -> tuple[Query, str, str]:
        """The query, and the texts of its major and its minor terms."""
        tokens = self.encode(prompt)
        query = find_query(tokens, frozenset(range(len(SPECIAL))), self.decode, **options)
        assert len(query.terms) == len(query.weights)
        assert query.terms.dtype == np.int64
        assert query.weights.dtype == np.float32
        assert 0 <= query.start <= query.end <= len(tokens)
        major = self.decode(query.terms[query.weights == 1].tolist())
        minor = self.decode(query.terms[query.weights < 1].tolist())
        return query, major.strip(), minor.strip()


def chatml(*messages: tuple[str, str], prompt: str = "assistant\n") -> str:
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in messages) + f"<|im_start|>{prompt}"


def llama(*messages: tuple[str, str]) -> str:
    body = "".join(f"<|header|>{role}<|/header|>\n\n{text}<|eot|>" for role, text in messages)
    return f"<|begin|>{body}<|header|>assistant<|/header|>\n\n"


def mistral(*messages: tuple[str, str]) -> str:
    return "<|begin|>" + "".join(f"[INST]{text}[/INST]" for role, text in messages if role == "user")


def text(words: int) -> str:
    """Document text: sentences of ten words, paragraphs of a hundred."""
    return "".join(
        f" w{i}" + ("." if i % 10 == 9 else "") + ("\n\n" if i % 100 == 99 else "") for i in range(words)
    ).strip()


TEMPLATES = pytest.mark.parametrize("template", [chatml, llama, mistral])
QUESTION = "What is the access code of Alder Ashby?"


@TEMPLATES
@pytest.mark.parametrize("document", [0, 50, 9950])
def test_question_after_document(template, document: int) -> None:
    prompt = template(("system", "You are helpful."), ("user", (text(document) + "\n\n" + QUESTION).strip()))
    toy = Toy()
    query, major, _ = toy.find(prompt)
    assert major == QUESTION
    tokens = toy.encode(prompt)
    assert toy.decode(tokens[query.start : query.end].tolist()).strip() == QUESTION


@TEMPLATES
def test_only_the_last_user_message_asks(template) -> None:
    earlier = [("user", "Who wrote the red book?"), ("assistant", "Nobody knows who did that.")]
    assert Toy().find(template(*earlier, ("user", QUESTION)))[1:] == (QUESTION, "")


@TEMPLATES
def test_a_message_of_one_word_is_no_header(template) -> None:
    assert Toy().find(template(("user", "Tell me a story."), ("assistant", "Once."), ("user", "Why?")))[1] == "Why?"


def test_a_question_for_what_holds_now() -> None:
    now, long = "Who has the access code now?", text(9950)
    find = Toy().find
    assert find(chatml(("user", long + "\n\n" + now)))[0].now
    assert find(chatml(("user", now + "\n\n" + long)))[0].now
    assert find(chatml(("user", text(400).replace("\n\n", " ") + " " + now)))[0].now
    # What asks says so, not the text around it.
    assert not find(chatml(("user", long + " It is raining now.\n\n" + QUESTION)))[0].now
    assert not find(chatml(("user", text(400).replace("\n\n", " ") + " It is raining now. " + QUESTION)))[0].now
    assert not find(chatml(("user", QUESTION + "\n\n" + long + " It is raining now.")))[0].now
    query = find(chatml(("user", long + "\n\n" + now)))[0]
    asked, said = query.answered(np.arange(20_000, dtype=np.uint32), 50)
    assert asked.now and not said.now


def test_generation_prompt_of_an_unknown_role_is_no_message() -> None:
    assert Toy().find(chatml(("user", QUESTION), prompt="narrator\n"))[1] == QUESTION


def test_an_answer_that_is_continued_does_not_ask() -> None:
    continued = chatml(("user", QUESTION), prompt="assistant\nThe access code that you want is")
    assert Toy().find(continued)[1] == QUESTION


def test_the_user_asks_and_not_the_result_of_a_tool() -> None:
    turns = [("user", QUESTION), ("assistant", "calling a tool now"), ("tool", "The weather is fine today.")]
    assert Toy().find(chatml(*turns))[1] == QUESTION
    far = [("user", QUESTION), ("assistant", text(6000)), ("tool", "The weather is fine today.")]
    assert Toy().find(chatml(*far))[1] == "The weather is fine today."


@pytest.mark.parametrize("document", [50, 3000, 20_000])
def test_instruction_before_document_and_question_after(document: int) -> None:
    prompt = chatml(("user", f"Answer from this text alone:\n{text(document)}\n\n{QUESTION}"))
    query, major, minor = Toy().find(prompt)
    assert (major, minor) == (QUESTION, "Answer from this text alone:")
    assert set(query.weights.tolist()) == {0.25, 1.0}


@TEMPLATES
@pytest.mark.parametrize("document", [350, 3030, 20_070])
def test_question_before_document(template, document: int) -> None:
    assert Toy().find(template(("user", f"{QUESTION}\n\n{text(document)}")))[1] == QUESTION


def test_question_at_the_end_of_a_long_paragraph() -> None:
    words = " ".join(f"w{i}" for i in range(500))
    query, major, minor = Toy().find(chatml(("user", f"{words}. {QUESTION}")))
    assert major == QUESTION
    assert minor.endswith("w499.")
    assert len(query.terms) == 64


@pytest.mark.parametrize("document", [0, 50, 9990])
def test_plain_prompt(document: int) -> None:
    assert Toy().find(f"{text(document)}\n\nQuestion: {QUESTION}\nAnswer:")[1] == f"Question: {QUESTION}\nAnswer:"


def test_at_most_max_terms_from_the_end() -> None:
    words = " ".join(f"w{i}" for i in range(100))
    query, _, _ = Toy().find(chatml(("user", words)), max_terms=7)
    assert len(query.terms) == 7
    assert query.end - query.start == 7


def test_a_long_first_line_is_text_and_not_an_instruction() -> None:
    line = " ".join(f"w{i}" for i in range(40)) + "."
    assert Toy().find(chatml(("user", f"{line}\n{text(500)}\n\n{QUESTION}")))[1:] == (QUESTION, "")


def test_prompts_without_words() -> None:
    for prompt in ("", "\n\n", "<|im_start|><|im_end|>", chatml(("user", "")), "?"):
        query, _, _ = Toy().find(prompt)
        assert len(query.terms) == 0


def test_a_prompt_of_one_word() -> None:
    assert Toy().find("<|begin|>Hello")[1] == "Hello"


def test_only_the_ends_are_read() -> None:
    """Cost independent of the length: what is decoded or compared lies in the last 4,096 or first 1,024 tokens."""
    toy = Toy()
    tokens = toy.encode(chatml(("user", f"{text(40_000)}\n\n{QUESTION}")))
    poisoned = tokens.copy()
    poisoned[1024:-4096] = 0xFFFFFFFF  # decoding this would fail
    query = find_query(poisoned, frozenset(range(len(SPECIAL))), toy.decode)
    assert toy.decode(query.terms.tolist()).strip() == QUESTION


def test_an_opening_is_told_and_is_no_evidence_for_itself() -> None:
    """The question before the document: its own words would outshine their answers."""
    toy, prompt = Toy(), chatml(("user", "Where is the walnut mill?\n" + text(2000)))
    query, _, _ = toy.find(prompt)
    tokens = toy.encode(prompt)
    first, stop = query.opening
    assert toy.decode(tokens[first:stop].tolist()).strip() == "Where is the walnut mill?"
    marks = np.zeros(len(tokens), dtype=np.int16)
    query.blank(marks)
    assert (marks[first:stop] == -1).all() and (marks[query.start : query.end] == -1).all()
    assert np.count_nonzero(marks) == stop - first + query.end - query.start
    assert toy.find(chatml(("user", text(2000) + "\nWhere is the walnut mill?")))[0].opening == (0, 0)


@pytest.mark.parametrize("document", [350, 3030])
@pytest.mark.parametrize("first", [True, False], ids=["before the text", "behind it"])
def test_what_the_question_lists_and_what_of_it_is_frame(document: int, first: bool) -> None:
    toy, question = Toy(), "Old mills, canals or new towns: which of these does the text speak about?"
    parts = (question, text(document)) if first else (text(document), question)
    query = toy.find(chatml(("user", "\n\n".join(parts))))[0]
    listed = [toy.decode(query.terms[start:stop].tolist()).strip() for start, stop, _ in query.alternatives]
    assert listed == [text for _, _, text in query.alternatives] == ["Old mills", "canals", "new towns"]
    weight = {toy.pieces[term].strip(): float(weight) for term, weight in zip(query.terms, query.weights)}
    assert max(weight[word] for word in ("does", "the", "text", "speak", "about")) < 0.1
    assert min(weight[word] for word in ("Old", "canals", "towns", "which")) == 1
    assert toy.find(chatml(("user", text(document) + "\n\nWho does the text speak about?")))[0].weights.min() == 1
    # An answer under way asks by what it says.
    assert query.answered(np.arange(9000, dtype=np.uint32), 50)[1].alternatives == ()


def test_how_much_of_a_document_stands_before_the_question() -> None:
    def before(*messages: tuple[str, str]) -> int:
        return Toy().find(chatml(*messages))[0].document

    assert before(("user", text(3000) + "\n\n" + QUESTION)) > 3000
    assert before(("user", text(20_000) + "\n\n" + QUESTION)) > 3000, "its beginning is not looked for"
    assert before(("user", QUESTION)) == before(("user", text(3000)), ("assistant", "Yes."), ("user", QUESTION)) == 0
    assert before(("user", QUESTION + "\n\n" + text(3000))) == 0
    for end in (
        "What does the last paragraph say?",
        "Who is spoken of above, and why?",
        "How does the story end here?",
    ):
        assert before(("user", text(3000) + "\n\n" + end)) == 0, end
