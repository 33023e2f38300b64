"""Which answers a text says."""

import pytest

from megacontext_vllm.eval.readers.spoken import said


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        ("The code is 48213.", [" 48213", " 99999"], {0}),
        ("482131", [" 48213"], set()),
        ("a48213", [" 48213"], set()),
        ("PARIS, I think", [" Paris", " London"], {0}),
        ("Paris or London", [" Paris", " London"], {0, 1}),
        ("It is dark red.", [" red", " dark red"], {1}),
        ("It is dark red, not red.", [" red", " dark red"], {0, 1}),
        ("", [" red"], set()),
        ("C++ (1.5)", [" C++", " 1.5", " C"], {0, 1}),
        ("1x5", [" 1.5"], set()),
        ("Straße", [" STRASSE"], {0}),
    ],
)
def test_whole_words_and_the_longest(text: str, answers: list[str], expected: set[int]) -> None:
    assert said(text, answers) == expected
