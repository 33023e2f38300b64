"""Does a question ask for all that there is of something, and not for one place that tells it? English.

"Which vessel did the potter make most often?" is answered by every sentence that says what he made. That one place has
all the words ("a vessel, as seemed good to the potter to make it") says nothing then, however few others do.
"""

import re

_MANY = re.compile(
    r"\b(?:(?:most|least|more|less)\s+(?:often|frequently)|how\s+many\s+times"
    r"|(?:list|name|count|enumerate|find|show|summari[sz]e)\s+(?:all|every|each))\b",
    re.IGNORECASE,
)


def asks_for_many(question: str) -> bool:
    """Whether ``question`` has words that say so."""
    return _MANY.search(question) is not None
