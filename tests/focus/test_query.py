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
    assert Toy().find(chatml(*far))[1] == QUESTION
    alone = [("assistant", "calling a tool now"), ("tool", "The weather is fine today.")]
    assert Toy().find(chatml(*alone))[1] == "The weather is fine today."


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


def part(toy: Toy, tokens: np.ndarray, span: tuple[int, int]) -> str:
    return toy.decode(tokens[slice(*span)].tolist()).strip()


ASKED = [("user", f"{text(3000)}\n\nWho was the master of Elm Quay?"), ("assistant", "The master was Amos Reed.")]


@TEMPLATES
def test_a_question_that_leans_takes_the_one_before_along(template) -> None:
    toy, prompt = Toy(), template(*ASKED, ("user", "When did he die?"))
    query, major, minor = toy.find(prompt)
    tokens = toy.encode(prompt)
    answered = template is not mistral  # of which this file renders no answers
    assert (major, minor) == ("When did he die?", "")
    before = query.before()
    assert before is not None and before.before() is None and before.leans_on is None
    names = toy.decode(before.terms[before.weights == 1].tolist())
    others = toy.decode(before.terms[before.weights == np.float32(0.1)].tolist())
    assert "Elm Quay" in names and ("Amos Reed" in names) == answered and "master of" in others
    assert set(before.weights.tolist()) == {np.float32(0.1), np.float32(1)}
    both = query.spelled_out()
    assert both.terms.tolist() == [*query.terms.tolist(), *before.terms.tolist()]
    assert both.weights.tolist() == [*query.weights.tolist(), *(before.weights / 2).tolist()]
    own = [part(toy, tokens, span) for span in query.own]
    assert own == ["Who was the master of Elm Quay?", "The master was Amos Reed."][: 1 + answered]
    assert query.beside == query.own
    assert part(toy, tokens, (query.start, query.end)) == "When did he die?", "what asks is the last one alone"
    marks = np.zeros(len(tokens), dtype=np.int16)
    query.blank(marks)
    assert all((marks[slice(*span)] == -1).all() for span in query.own)


def test_a_question_that_stands_alone_takes_nothing_along() -> None:
    query, major, minor = Toy().find(chatml(*ASKED, ("user", QUESTION)))
    assert (major, minor) == (QUESTION, "") and query.own == query.beside == ()
    assert query.before() is None and query.spelled_out() is query
    first = Toy().find(chatml(("user", "When did he die?")))[0]
    assert first.before() is None, "there is nothing before"


def test_questions_that_lean_on_one_another() -> None:
    more = ("user", "When did he die?"), ("assistant", "In the year of the flood."), ("user", "And his wife?")
    chain = [*ASKED, *more]
    toy, prompt = Toy(), chatml(*chain)
    query = toy.find(prompt)[0]
    weight = {toy.pieces[term].strip(): float(weight) for term, weight in zip(*query.leans_on)}
    assert weight["flood"] == weight["die"] == 0.5 and weight["Reed"] == 0.5
    tokens = toy.encode(prompt)
    beside = " ".join(part(toy, tokens, span) for span in query.beside)
    assert "When did he die?" in beside and "flood" in beside, "the one before is shown"
    assert "Elm Quay" not in beside
    alone = [*chain[:2], ("user", QUESTION), *chain[3:]]
    leans_on = toy.find(chatml(*alone))[0].leans_on
    assert leans_on is not None and "Reed" not in toy.decode(leans_on[0].tolist()), "no further than it has to"


def test_a_long_answer_is_leant_on_with_its_ends() -> None:
    toy, said = Toy(), f"Amos Reed. {text(300)} Shall I look for his Wife?"
    query = toy.find(chatml(("user", QUESTION), ("assistant", said), ("user", "Yes, please.")))[0]
    assert query.leans_on is not None
    words = toy.decode(query.leans_on[0].tolist())
    assert "Amos Reed" in words and "look for his Wife?" in words and " w150" not in words


def test_what_was_asked_before_a_document_is_leant_on_without_it() -> None:
    toy, asked = Toy(), "Who was the master of Elm Quay?"
    query = toy.find(chatml(("user", f"{asked}\n{text(3000)}"), ("assistant", "Amos."), ("user", "Why?")))[0]
    assert query.leans_on is not None
    words = toy.decode(query.leans_on[0].tolist())
    assert "Elm Quay" in words and "Amos" in words and "w2999" not in words


WHO, FEE = "Who was the master of Elm Quay?", "What is the fee for a barge?"


def test_each_of_several_questions_is_looked_for_with_little_of_the_others() -> None:
    toy = Toy()
    query, _, _ = toy.find(chatml(("user", f"{text(3000)}\n\nIt is for a book. {WHO} {FEE}")))
    weights = [{toy.pieces[term].strip(): float(weight) for term, weight in zip(one.terms, one.weights)}
               for one in query.questions]  # fmt: skip
    master, fee = weights
    little = np.float32(0.2)
    assert (master["Quay"], master["barge"]) == (1, little) and (fee["Quay"], fee["barge"]) == (little, 1)
    assert master["book"] == fee["book"] == 1, "what is said beside them is said of each"
    assert [one.worth for one in query.questions] == [1, 1] and not any(one.questions for one in query.questions)
    now = toy.find(chatml(("user", f"{text(3000)}\n\n{WHO} What is the fee now?")))[0]
    assert [one.now for one in now.questions] == [False, True]


def test_what_does_not_ask_by_itself_is_looked_for_with_and_without_what_stands_in_front_of_it() -> None:
    toy, told = Toy(), "The gauge of berth 17 is closed to all of the barges."
    query = toy.find(chatml(("user", f"{text(3000)}\n\n{told}\n\nWhy is that so?")))[0]
    alone, both = query.questions
    heard = [toy.decode(one.terms[one.weights == 1].tolist()) for one in (alone, both)]
    assert heard[0] == "Why is that so?" and "gauge of berth" in heard[1] and "w2999" not in heard[1]
    assert (alone.worth, both.worth) == (1, 0.9)
    assert toy.find(chatml(("user", f"{text(3000)}\n\n{WHO}")))[0].questions == ()


@pytest.mark.parametrize("asked", ["What is the reason?", "How can I fix it?", "What went wrong?"])
def test_a_question_without_words_of_its_own_leans_on_the_one_before(asked: str) -> None:
    query = Toy().find(chatml(*ASKED, ("user", asked)))[0]
    assert query.leans_on is not None
    remark = "Thank you for this quick and helpful reply of yours."
    toy = Toy()
    query = toy.find(chatml(*ASKED, ("user", f"{remark}\n\n{asked}")))[0]
    assert all(one.leans_on is not None for one in query.questions) and len(query.questions) == 2


@pytest.mark.parametrize("label", ["Question:", "### Instruction:\n", "User query:"])
def test_a_line_in_front_of_a_text_may_be_called_the_question(label: str) -> None:
    toy, told = Toy(), "You are an assistant who answers from what he is given and from nothing else at all."
    prompt = chatml(("user", f"{told}\n{label} {WHO}\nContext: {text(3000)}\nAnswer:"))
    query, major, _ = toy.find(prompt)
    assert major == WHO and query.questions == ()
    shown = part(toy, toy.encode(prompt), query.beside[0])
    assert shown.startswith(told) and shown.endswith(WHO)
    # Where the end asks, it is the text's.
    assert toy.find(chatml(("user", f"{label} {FEE}\n{text(3000)}\n\n{WHO}")))[1] == WHO


@pytest.mark.parametrize("begun", [30, 3000])
def test_an_answer_that_has_begun_is_what_stands_behind_the_question(begun: int) -> None:
    toy, prompt = Toy(), chatml(("user", QUESTION), prompt=f"assistant\n{text(begun)}")
    query = toy.find(prompt)[0]
    tokens = toy.encode(prompt)
    assert part(toy, tokens, query.result) == text(begun) and query.step == (0, 0) and query.document == 0
    assert part(toy, tokens, query.beside[0]) == QUESTION
    marks = np.zeros(len(tokens), dtype=np.int16)
    query.blank(marks)
    assert (marks[slice(*query.result)] == -1).all(), "it is no evidence for what it answers"


CALLED = [("system", "Be brief."), ("user", QUESTION), ("assistant", "I look for the red mill.")]


@pytest.mark.parametrize("result", [50, 3000, 20_000])
@pytest.mark.parametrize("template", [chatml, llama])
def test_behind_the_question_stands_what_a_tool_returned(template, result: int) -> None:
    toy, prompt = Toy(), template(*CALLED, ("tool", text(result)))
    query, major, minor = toy.find(prompt)
    tokens = toy.encode(prompt)
    assert (major, minor) == (QUESTION, "") and part(toy, tokens, (query.start, query.end)) == QUESTION
    assert part(toy, tokens, query.result) == text(result) and part(toy, tokens, query.step) == CALLED[2][1]
    assert query.document == query.result[1] - query.result[0]
    assert part(toy, tokens, (0, query.instructions)).endswith("Be brief.")
    asked, called, *headers = query.beside
    assert part(toy, tokens, asked) == QUESTION and called[1] == query.result[0]
    assert CALLED[2][1] in part(toy, tokens, called)
    assert [stop for _, stop in headers] == [asked[0], called[0]], "and whose they are"
    marks = np.zeros(len(tokens), dtype=np.int16)
    query.blank(marks)
    assert (marks[slice(*query.step)] == -1).all(), "what the model says is no evidence for the question"
    assert (marks[slice(*query.result)] == 0).all()
    doing = query.doing(tokens)
    assert doing is not None and toy.decode(doing.terms.tolist()).strip() == CALLED[2][1]
    ends = [CALLED[0], ("user", "How does the story end?"), CALLED[2], ("tool", text(result))]
    assert toy.find(template(*ends))[0].document == 0


def test_of_many_calls_the_last_is_what_is_being_done() -> None:
    turns = [*CALLED, ("tool", text(3000)), ("assistant", "Now the blue one."), ("tool", text(30)), ("tool", text(40))]
    toy, prompt = Toy(), chatml(*turns)
    query = toy.find(prompt)[0]
    tokens = toy.encode(prompt)
    assert part(toy, tokens, query.step) == "Now the blue one."
    assert part(toy, tokens, query.result).startswith(text(30)) and part(toy, tokens, query.result).endswith(text(40))
    assert [part(toy, tokens, span) for span in query.own] == ["I look for the red mill.", "Now the blue one."]


def test_without_a_tool_nothing_is_being_done() -> None:
    toy, prompt = Toy(), chatml(*CALLED[:2])
    query = toy.find(prompt)[0]
    assert query.doing(toy.encode(prompt)) is None and query.result == query.step == (0, 0)
