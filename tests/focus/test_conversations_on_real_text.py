"""Conversations about real text: what asks is shown wherever it stands, and what answers is found."""


import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.working_context import Kind

FIRSTS, LASTS = ("Amos", "Clara", "Edric", "Mira", "Orin", "Petra"), ("Reed", "Ashby", "Carver", "Merrow")
PEOPLE = [f"{first} {last}" for first in FIRSTS for last in LASTS]
"""All of whom wrote a number into the ledger; the first was the master of Elm Quay."""
RULES = " ".join(f"Rule {number}: ask the owner of thing {number} before you touch it." for number in range(60))
WHO, WHICH = "Who was the harbour master of Elm Quay?", "Which number did he write in the ledger?"
OFFICE = " The harbour master of Elm Quay was Amos Reed."


def number(person: str) -> int:
    return 50_111 + 1_717 * PEOPLE.index(person)


def wrote(person: str) -> str:
    return f" {person} wrote the number {number(person)} in the ledger."


@pytest.fixture(scope="module")
def document(text: str) -> str:
    """Some 94,000 tokens with the office and the numbers at the ends of sentences."""
    facts = [OFFICE, *map(wrote, reversed(PEOPLE))]
    step = 480_000 // len(facts)
    parts = []
    for i, fact in enumerate(facts):
        part = text[i * step : (i + 1) * step]
        end = part.rindex(". ") + 1
        parts += [part[:end], fact, part[end:]]
    return "".join(parts)


def shown(focus: Focus, tokenizer: PreTrainedTokenizerBase, messages: list[tuple[str, str]], window: int = 600) -> str:
    """What the model is shown, with markers for the rest."""
    turns = [{"role": role, "content": content} for role, content in messages]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = np.array(tokenizer.encode(rendered, add_special_tokens=False, verbose=False), dtype=np.uint32)
    assert len(tokens) > 90_000
    context = focus.allocate(focus.score(tokens), window, gists=False)
    return "".join(
        tokenizer.decode(tokens[entry.start : entry.end].tolist()) if entry.kind is Kind.RAW else " [...] "
        for entry in context.entries
    )


@pytest.mark.parametrize("said", ["He is named there: Amos Reed.", "Amos Reed held that office, says the text. " * 20])
def test_a_follow_up_is_about_whom_the_question_before_was(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, said: str
) -> None:
    before = [("user", f"{document}\n\n{WHO}"), ("assistant", said)]
    seen = shown(focus, tokenizer, [*before, ("user", WHICH)])
    assert wrote("Amos Reed") in seen and WHO in seen and "Amos Reed" in seen.split(WHO)[1]
    # The same after another question that was answered in between.
    deeper = [*before, ("user", "Was he old?"), ("assistant", "It does not say so.")]
    assert wrote("Amos Reed") in shown(focus, tokenizer, [*deeper, ("user", WHICH)], window=1024)
    # A question with a name of its own is about that one.
    other = WHICH.replace("he", "Petra Merrow")
    assert wrote("Petra Merrow") in shown(focus, tokenizer, [*before, ("user", other)])


@pytest.mark.parametrize("as_user", [False, True], ids=["tool", "tool_response of the user"])
@pytest.mark.parametrize("window", [600, 1024])
def test_what_a_tool_returned_is_searched_for_the_users_question(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, as_user: bool, window: int
) -> None:
    role, result = ("user", f"<tool_response>\n{document}\n</tool_response>") if as_user else ("tool", document)
    turns = [("user", WHO), ("assistant", "I will read the file harbours.txt."), (role, result)]
    seen = shown(focus, tokenizer, turns, window)
    assert WHO in seen and turns[1][1] in seen and OFFICE in seen
    assert seen.rstrip().endswith("<|im_start|>assistant")


def test_what_a_tool_was_called_for_is_looked_for_too(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str
) -> None:
    """The user's question alone has no word of the sentence."""
    turns = [
        ("user", "Please settle the matter that I wrote to you about yesterday."),
        ("assistant", "I have to know which number Petra Merrow wrote in the ledger."),
        ("tool", document),
    ]
    assert wrote("Petra Merrow") in shown(focus, tokenizer, turns)
    assert wrote("Petra Merrow") not in shown(focus, tokenizer, [turns[0], ("assistant", "I will look."), turns[2]])


def test_a_short_result_is_read_whole(focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str) -> None:
    found = " ".join(f"Line {i} of what was found." for i in range(20))
    turns = [("user", f"{document}\n\n{WHO}"), ("assistant", "I will search."), ("tool", found)]
    seen = shown(focus, tokenizer, turns, window=1024)
    assert WHO in seen and "I will search." in seen and found in seen and OFFICE in seen


@pytest.mark.parametrize("first", [True, False], ids=["question before the text", "behind it"])
def test_instructions_and_a_question_before_the_text_are_shown(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, first: bool
) -> None:
    asked = f"{WHO}\n\n{document}" if first else f"{document}\n\n{WHO}"
    seen = shown(focus, tokenizer, [("system", RULES[:700]), ("user", asked)], window=1024)
    assert RULES[:700] in seen and WHO in seen and OFFICE in seen
    # More than a quarter of the window is shown from its start.
    seen = shown(focus, tokenizer, [("system", RULES), ("user", asked)], window=1024)
    assert RULES[:700] in seen and WHO in seen and OFFICE in seen


def test_a_summary_is_made_of_something_of_everywhere(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, text: str
) -> None:
    document = text[:500_000]
    for turns in (
        [("user", f"{document}\n\nSummarize these speeches.")],
        [("user", f"Summarize the following text.\n\n{document}")],
        [("user", "Summarize the file, please."), ("assistant", "I will read it."), ("tool", document)],
        [("user", f"{document}\n\n{WHO}"), ("assistant", "Nobody."), ("user", "What is the text about, in short?")],
    ):
        pieces = shown(focus, tokenizer, turns, window=1024).split(" [...] ")
        places = [document.index(piece.strip()[5:60]) / len(document) for piece in pieces[1:-1]]
        assert len(places) >= 8 and np.diff(places, prepend=0, append=1).max() < 0.2, places


@pytest.mark.parametrize(
    "wrapped",
    [
        "{question}\n\nAnswer in one sentence.",
        "Question: {question}\nAnswer:",
        "Question: {question}\n\nHelpful Answer:",
        "{question} Please answer briefly.",
        "Please answer briefly. {question}",
        '{question}\nGive your answer as JSON with the keys "answer" and "confidence".',
        "Answer the question from the text above.\n\nQuestion: {question}\n\nIf you don't know the answer, say so.",
        "{question}\n\n- Keep it short.\n- Do not use markdown.\n- Quote the sentence.",
        "{question}\n\nRespond in the following format:\n\nName: <name>\nReason: <reason>",
        "Answer in French, in at most ten words.\n\n{question}",
        "{question}\n\nBest regards,\nMary Jones",
    ],
)
def test_how_to_answer_is_shown_and_not_looked_for(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, wrapped: str
) -> None:
    asked = wrapped.format(question=WHO)
    seen = shown(focus, tokenizer, [("user", f"{document}\n\n{asked}")])
    assert OFFICE in seen and asked in seen
    before = shown(focus, tokenizer, [("user", f"{WHO}\n\n{document}\n\nAnswer in one sentence, please.")])
    assert OFFICE in before and WHO in before and "Answer in one sentence, please." in before
    told = wrapped.format(question=f"I would like to know {WHO[0].lower()}{WHO[1:-1]}.")
    assert OFFICE in shown(focus, tokenizer, [("user", f"{document}\n\n{told}")], window=1024)


HUB = "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer."
ERROR = 'Traceback (most recent call last):\n  File "run.py", line 12, in <module>\nWrongMaster: Amos Reed of Elm Quay'


@pytest.mark.parametrize(
    ("asked", "seen_too"),
    [
        (f"{HUB}\nQuestion: {WHO} \nContext: {{document}} \nAnswer:", f"Question: {WHO}"),
        (f"{{document}}\n\n{WHO}\nA) Jonas Carver\nB) Amos Reed\nC) Orin Merrow\nAnswer with a letter.", "Jonas"),
        ("{document}\n\nHarbour master of Elm Quay\n\nAnswer in one sentence.", "Harbour master of Elm Quay\n"),
        (f"{{document}}\n\n{ERROR}\n\nWhy does this fail?", ERROR),
        (f"{{document}}\n\nWhy does this fail?\n\n{ERROR}", f"fail?\n\n{ERROR}"),
        ("{document}\n\nI need the harbour master of Elm Quay.\n\nOne line will do.\n\nThank you!", "I need the"),
    ],
    ids=["labelled", "choice", "no question", "in front", "behind", "a wish"],
)
def test_what_is_asked_in_other_ways(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, asked: str, seen_too: str
) -> None:
    seen = shown(focus, tokenizer, [("user", asked.format(document=document))])
    assert OFFICE in seen and seen_too in seen


@pytest.mark.parametrize("between", ["\n", " "])
def test_each_of_two_questions_finds_what_answers_it(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, between: str
) -> None:
    other = "Which number did Petra Merrow write in the ledger?"
    seen = shown(focus, tokenizer, [("user", f"{document}\n\n{WHO}{between}{other}")])
    assert OFFICE in seen and wrote("Petra Merrow") in seen and WHO in seen and other in seen


def test_a_tool_that_returned_nothing_leaves_the_question_shown(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str
) -> None:
    thought = "I have to think about that at length, and then look for it. " * 80
    seen = shown(focus, tokenizer, [("user", f"{document}\n\n{WHO}"), ("assistant", thought), ("tool", "")])
    assert WHO in seen and OFFICE in seen


ENDS = ["How do I close a session?", "When the port is not given, the default is used.", "Thank you."]


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize(
    "asked",
    [
        "Give the full sentence that names the harbour master of Elm Quay.",
        "In one sentence, name the harbour master of Elm Quay.",
        "Give the name of the harbour master of Elm Quay. Keep the answer short.",
        "Your task is to output the name of the harbour master of Elm Quay.",
        "Quote the sentence on the harbour master of Elm Quay.",
    ],
)
def test_the_last_line_of_a_text_is_not_taken_for_the_question(
    focus: Focus, tokenizer: PreTrainedTokenizerBase, document: str, ends: str, asked: str
) -> None:
    assert OFFICE in shown(focus, tokenizer, [("user", f"{document}\n\n{ends}\n\n{asked}")])
    if "?" not in ends:  # else it may as well be the question
        assert OFFICE in shown(focus, tokenizer, [("user", f"{asked[:-1]}:\n\n{document}\n\n{ends}")])
