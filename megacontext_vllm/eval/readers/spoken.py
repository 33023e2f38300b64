"""Which answers a text says: as whole words, upper or lower case, the longest where one lies in another."""

import re
from collections.abc import Sequence


def said(text: str, answers: Sequence[str]) -> set[int]:
    """Indexes of the ``answers`` (any white space around them is not theirs) that stand in ``text``.

    "dark red" says "dark red" and not "red"; "482131" does not say "48213".
    """
    stripped = [answer.strip().casefold() for answer in answers]
    assert all(stripped), f"an empty answer: {answers}"
    longest_first = sorted(stripped, key=len, reverse=True)
    pattern = rf"(?<!\w)(?:{'|'.join(re.escape(answer) for answer in longest_first)})(?!\w)"
    return {stripped.index(found) for found in re.findall(pattern, text.casefold())}
