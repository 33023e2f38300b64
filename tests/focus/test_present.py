"""Questions for what holds now, and questions that only sound like it."""

import pytest

from megacontext_vllm.focus.present import asks_for_now

NOW = [
    "Where is the meeting point of the rowing club now?",
    "Who is the current treasurer?",
    "Who currently holds the key",
    "What is the club's current address?",
    "What is the LATEST estimate?",
    "Which address was given most  recently?",
    "Where do they live these\ndays?",
    "Where is he right now?",
]
NOT_NOW = [
    "Where is the meeting point of the rowing club?",
    "What was said until now about the canals?",
    "What happened up to now, and who was there?",
    "How strong is the current in the wire?",
    "What does the electric current do?",
    "He sings now and then; what?",
    "Who knows of the snow?",
    "When will the present be given to her?",
    "",
]


@pytest.mark.parametrize("question", NOW)
def test_now(question: str) -> None:
    assert asks_for_now(question)


@pytest.mark.parametrize("question", NOT_NOW)
def test_not_now(question: str) -> None:
    assert not asks_for_now(question)
