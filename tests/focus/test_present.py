"""Questions for what holds now, and questions that only sound like it."""

import pytest

from megacontext_vllm.focus.present import asks_for_now, told_backwards

NOW = [
    "Where is the meeting point of the rowing club now?",
    "Who currently holds the key",
    "Where do they live these\ndays?",
    "Where is he right now?",
    "What does it cost nowadays?",
]
NOT_NOW = [
    "Where is the meeting point of the rowing club?",
    "What is said until now about the canals?",
    "What happens up to now, and who is there?",
    "How strong is the current in the wire?",
    "He sings now and then; what?",
    "Who knows of the snow?",
    # the past, too, or all of it
    "Where was the meeting point of the rowing club before the current one?",
    "What was the meeting point before, and what is it now?",
    "What was the meeting point then, and what is it now?",
    "Which meeting point did the club have before the one it has now?",
    "How has the budget changed from 2010 to now?",
    "What is each meeting point now?",
    "Compare the first plan with the one that holds now.",
    # no time
    "Now, what is the meeting point?",
    "What does the doctor say just now?",
    "Who directs Apocalypse Now?",
    "When is NOW founded?",
    # which of several things that a reader has to see
    "What is the latest release of Harrow?",
    "By when must the form be handed in at the latest?",
    "What is the current rating of the fuse?",
    "What happens at the moment the bell rings?",
    "What is most recent?",
    "",
]


@pytest.mark.parametrize("question", NOW)
def test_now(question: str) -> None:
    assert asks_for_now(question)


@pytest.mark.parametrize("question", NOT_NOW)
def test_not_now(question: str) -> None:
    assert not asks_for_now(question)


def test_told_backwards() -> None:
    assert told_backwards(["In 2021 it moved.", "In 2019 it moved."])
    assert told_backwards(["Harrow 2.10 is out.", "Harrow 2.9 is out."])
    assert not told_backwards(["In 2019 it moved.", "In 2021, as in 2018, it moved."])
    assert not told_backwards(["Harrow 2.9", "Harrow 2.10"]) and not told_backwards(["week 30", "week 12"])
    assert not told_backwards(["In 2021 it moved.", "It moved."])
