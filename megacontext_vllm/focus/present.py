"""Does a question ask for what holds now, of something that has been told before in other ways? English.

"Where do they meet now?", over a history that says four times where they meet, is answered by the last of the four. The
others are not evidence but what it must not be mixed up with: a small reader that is shown all four takes any of them.
Without such a word all of them are shown, in their order.
"""

import re

_NOW = re.compile(
    r"\b(?:now|nowadays|currently|presently|latest|newest|most\s+recent(?:ly)?"
    r"|at\s+present|at\s+the\s+moment|these\s+days)\b"
    # the current treasurer; neither the electric current nor the current in a wire
    r"|(?:\b(?:the|its|his|her|their|our|your|my|whose)|['’]s)\s+current\s+(?!(?:of|in|at|from|to|through|and|or|is|was)\b)\w",
    re.IGNORECASE,
)
_ALL_ALONG = re.compile(
    r"\b(?:until|till|up\s+to|before|every|since)\s+now\b|\bnow\s+and\s+(?:then|again)\b", re.IGNORECASE
)
"""What has such a word and asks for what was before, too."""
_TIMES = {"nowadays", "current", "currently", "present", "presently", "latest", "newest", "recent", "recently"}
_TIMES |= {"moment", "days"}


def asks_for_now(question: str) -> bool:
    """Whether ``question`` has a word that says so."""
    return _NOW.search(_ALL_ALONG.sub(" ", question)) is not None


def says_when(word: str) -> bool:
    """Whether ``word``, of a question for what holds now, only says that: what answers need not have it."""
    return word.strip().casefold() in _TIMES
