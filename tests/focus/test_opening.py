"""What a message opens with, where its end may be a document's, in other languages than English."""

import numpy as np
import pytest

from megacontext_vllm.focus.query import Query, find_query
from tests.focus.test_query import SPECIAL, Toy, chatml

DOCUMENT = "".join(f"Der {i}. Satz über Fähren und Häfen steht hier.\n\n" for i in range(60))
QUESTIONS = "Zwei Fragen:\n1. Wer hütet den Turm?\n2. Woraus sind die Dächer?"
ASKED = {
    "no mark": "Suche heraus, womit die Dächer gedeckt sind.",
    "a question": "Womit sind die Dächer gedeckt?",
}


def find(*messages: tuple[str, str]) -> tuple[Query, Toy]:
    toy = Toy()
    tokens = toy.encode(chatml(*messages))
    return find_query(tokens, frozenset(range(len(SPECIAL))), toy.decode), toy


def readings(query: Query, toy: Toy) -> list[str]:
    """What each reading looks for with all its weight."""
    return [toy.decode(one.terms[one.weights == 1].tolist()).strip() for one in query.questions or (query,)]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_it_is_looked_for_beside_the_end(asked: str) -> None:
    query, toy = find(("user", f"{asked}\n\n{DOCUMENT}"))
    assert asked in readings(query, toy)
    shown = [toy.decode(toy.encode(chatml(("user", f"{asked}\n\n{DOCUMENT}")))[slice(*part)]) for part in query.beside]
    assert asked in "".join(shown)


def test_questions_one_by_one() -> None:
    query, toy = find(("user", f"{QUESTIONS}\n\n{DOCUMENT}"))
    found = readings(query, toy)
    assert any("hütet den Turm" in one and "Dächer" not in one for one in found)
    assert any("die Dächer" in one and "Turm" not in one for one in found)


@pytest.mark.parametrize("asked", ["Wer hütet den Turm?", "Sag mir, wer den Türmer kennt, und antworte kurz?"])
def test_not_where_the_end_asks(asked: str) -> None:
    query, toy = find(("user", f"Die Häfen des Nordens\n\n{DOCUMENT}{asked}"))
    assert readings(query, toy) == [asked]


@pytest.mark.parametrize(
    ("title", "asked"),
    [
        ("The Harbours of the North", "harbour master of elm quay"),
        ("Harbours", "Tell me who kept the mill"),
        ("HARBOURS 1871", "harbour master of elm quay"),
    ],
)
def test_not_in_english(title: str, asked: str) -> None:
    text = DOCUMENT.replace("Fähren und Häfen", "ferries").replace("über", "on")
    query, toy = find(("user", f"{title}\n\n{text}{asked}"))
    assert title not in readings(query, toy)


def test_a_text_in_another_script_may_end_in_english() -> None:
    text = "".join(f"제 {i} 절은 항구와 나룻배에 대한 글이다.\n\n" for i in range(60))
    asked, end = "탑의 지붕은 무엇으로 덮여 있는지 찾으시오", "Figure 3. This is what the screen shows"
    query, toy = find(("user", f"{asked}\n\n{text}{end}"))
    assert any(asked in one for one in readings(query, toy))


def test_a_long_paragraph_is_the_text() -> None:
    query, toy = find(("user", f"{'Häfen gibt es viele, sagt man. ' * 30}\n\n{DOCUMENT}Das war der Schluß"))
    assert all("sagt man" not in one for one in readings(query, toy))


HOW = [("Wer hütet den Turm in Kähmen?", "Antworte in einem Satz."), ("谁 看守 那 座 灯塔？", "请 用 一句话 回答。")]


@pytest.mark.parametrize(("asked", "how"), HOW)
def test_a_question_above_how_to_answer_it(asked: str, how: str) -> None:
    query, toy = find(("user", f"{DOCUMENT}{asked}\n\n{how}"))
    found = readings(query, toy)
    assert any(asked in one and how not in one for one in found)
    assert max(query.questions, key=lambda one: one.worth).worth == 1
    worth = dict(zip(found, (one.worth for one in query.questions), strict=True))
    assert worth[how] < 1


FIRST = ("user", DOCUMENT + "Wer hütet den Turm?"), ("assistant", "Ottilie Kranzmeyer.")


def test_a_question_that_may_lean_on_the_one_before() -> None:
    query, toy = find(*FIRST, ("user", "Wann starb sie?"))
    leans = [toy.decode(one.leans_on[0].tolist()) for one in query.questions if one.leans_on is not None]
    assert query.leans_on is None
    assert any("hütet den Turm" in said for said in leans)
    assert any("Kranzmeyer" in said and "Turm" not in said for said in leans)
    assert any(one.leans_on is None for one in query.questions)


def test_an_english_question_that_stands_alone_does_not() -> None:
    query, _ = find(*FIRST, ("user", "What is the height of the tower?"))
    assert query.questions == ()
    assert query.leans_on is None


@pytest.mark.parametrize(
    "asked",
    [
        "Pellworth copper roof invoice? Marrowgate population?",
        "Wann schloß die Mühle am Kaltberg? Wer hütet den Turm in Kähmen?",
        "Wie heißt die Frau, die den Turm am Hafen von Kähmen hütet und Fähren zählt?",
    ],
)
def test_several_questions_or_a_long_one_lean_on_none(asked: str) -> None:
    query, _ = find(*FIRST, ("user", asked))
    assert all(one.leans_on is None for one in query.questions or (query,))


LABELLED = [("Frage:", "Sag mir, wer den Türmer kennt."), ("问题：", "请 告诉 我 谁 看守 灯塔。")]


@pytest.mark.parametrize(("label", "end"), LABELLED)
def test_a_line_of_a_document_is_no_label(label: str, end: str) -> None:
    query, toy = find(("user", f"Häufige Anliegen\n\n{label} Wie öffne ich das Fenster\n\n{DOCUMENT}{end}"))
    assert end in readings(query, toy)
    assert all("Fenster" not in one for one in readings(query, toy))


def test_labels() -> None:
    for label, asked in (("问题：", "谁 看守 那 座 灯塔"), ("Вопрос:", "кто сторожит этот маяк")):
        query, toy = find(("user", f"{label} {asked}\n\n{DOCUMENT}Ответ:"))
        assert any(asked in one for one in readings(query, toy)), label
        assert np.isfinite(query.weights).all()
