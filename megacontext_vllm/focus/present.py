"""Does a question ask for what holds now, of something that the text has told before in other ways? English.

"Where do they meet now?", over a text that says four times where they meet, is answered by the last of the four. The
others are not evidence but what it must not be mixed up with: a small reader that is shown all four takes any of them.

To hide what was told before is worse than to show too much, where the question was not understood. So only a few words
say so, a question that has a word of the past does not, and neither does one of a text that is told backwards.
"""

import re
from collections.abc import Sequence

_NOW = re.compile(r"\b(?:now|nowadays|currently|presently|these\s+days)\b")
"""As they are written inside a sentence: "Now, ..." says nothing, and "Apocalypse Now" is a name."""
_NOT_NOW = re.compile(
    # the past, a comparison, or all there is
    r"\b(?:was|were|wasn|weren|did|didn|had|hadn|been|ago|before|previous\w*|former\w*|first|original\w*|earlier|then|once"
    r"|until|till|since|ever|always|histor\w+|chang\w+|compar\w+|differ\w*|each|every|all|used\s+to|(?:up|from)\b.*\bto"
    # and what is no time
    r"|(?:just|by|even|for)\s+now|now\s+and|now\s+that)\b",
    re.IGNORECASE,
)
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d\b")
_NUMBERED = re.compile(r"\b\d+(?:\.\d+)+\b")


def asks_for_now(question: str) -> bool:
    """Whether ``question`` has a word that says so, and none that says something else."""
    return _NOW.search(question) is not None and _NOT_NOW.search(question) is None


def told_backwards(texts: Sequence[str]) -> bool:
    """Whether ``texts``, in their order in a document, have years or version numbers that go down."""
    for pattern in (_YEAR, _NUMBERED):
        first, last = (pattern.findall(text) for text in (texts[0], texts[-1]))
        if first and last and max(map(_key, first)) > max(map(_key, last)):
            return True
    return False


def _key(number: str) -> tuple[int, ...]:
    return tuple(map(int, number.split(".")))
