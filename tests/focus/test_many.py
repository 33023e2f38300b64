"""Questions for all there is of something, and questions that only sound like it."""

import pytest

from megacontext_vllm.focus.many import asks_for_many


@pytest.mark.parametrize(
    "question",
    [
        "Which vessel did the potter make most often?",
        "Who is mentioned least\nfrequently",
        "How many times does she ask for the key?",
        "List every port that the ship called at.",
        "Please name all of his sisters.",
    ],
)
def test_many(question: str) -> None:
    assert asks_for_many(question)


@pytest.mark.parametrize(
    "question",
    [
        "How many shoes were mended?",
        "How often is the clock wound?",
        "Which vessel did the potter make?",
        "Who has all the keys?",
        "Where is the list, all in all?",
        "",
    ],
)
def test_one(question: str) -> None:
    assert not asks_for_many(question)
