"""The text of a prompt as the rules of this package read it, whatever its script and its tokens."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

Decode = Callable[[list[int]], str]
"""Token ids -> their text."""

CUT = "\ufffd"
"""What a tokenizer makes of a part of a character: many letters are two or three tokens to it."""

_LONGEST = 8
"""Tokens that may be needed to see a whole character; what is none after so many is no text."""

_CHARACTERS = 4
"""To a token, in a text for which a tokenizer was made; others are cut into many more."""

_MARKS = str.maketrans(
    {
        "？": "?", "﹖": "?", "؟": "?", "\u037e": "?", "՞": "?", "፧": "?", "⸮": "?",
        "！": "!", "﹗": "!",
        "。": ".", "．": ".", "｡": ".", "।": ".", "॥": ".", "۔": ".", "։": ".", "።": ".", "။": ".",
        "：": ":", "；": ";", "؛": ";", "，": ",", "、": ",", "،": ",", "（": "(", "）": ")",
    }
)  # fmt: skip

_GREEK = re.compile(r"(?<=[\u0370-\u03ff\u1f00-\u1fff]{2})(\s?);(?=\s|$)")
"""Behind a Greek word this asks; behind one letter it may end a statement: "r = π;"."""


def plain(text: str) -> str:
    """``text`` with the marks of other scripts as those of English, one for one."""
    return text if text.isascii() else _GREEK.sub(r"\1?", text.translate(_MARKS))


def plainly(decode: Decode) -> Decode:
    """``decode``, and what it makes of tokens ``plain``."""
    return lambda ids: plain(decode(ids))


def pieces(tokens: Sequence[int], decode: Decode) -> list[str]:
    """The ``plain`` text of each of ``tokens``.

    That of a character which is several of them stands with the last of these, and the others have none.
    """
    texts = [decode([token]) for token in tokens]
    cut = [CUT in text for text in texts]
    start = 0
    while True in cut[start:]:
        start = cut.index(True, start)
        stop = cut.index(False, start) if False in cut[start:] else len(cut)
        texts[start:stop] = _together(tokens[start:stop], decode)
        start = stop
    text = plain("".join(texts))  # what a mark is, what stands beside it may say
    ends = [0, *accumulate(map(len, texts))]
    return [text[begin:end] for begin, end in pairwise(ends)]


def length(texts: Sequence[str]) -> float:
    """How long a text of these pieces is, in tokens of a tokenizer that was made for its script."""
    if all(map(str.isascii, texts)):
        return len(texts)
    return min(len(texts), sum(map(len, texts)) / _CHARACTERS)


def fitting(texts: Sequence[str], most: int) -> int:
    """How many of the first of ``texts`` have a ``length`` of at most ``most``."""
    return bisect_left(range(len(texts)), True, key=lambda last: length(texts[: last + 1]) > most)


def _together(tokens: Sequence[int], decode: Decode) -> list[str]:
    """The same, of tokens of which each is or has a part of a character."""
    found, begin = [], 0
    for stop in range(1, len(tokens) + 1):
        text = decode([*tokens[begin:stop]])
        if text.endswith(CUT) and stop < len(tokens) and stop - begin < _LONGEST:
            found.append("")
        else:
            found.append(text)
            begin = stop
    return found
