"""What the wording of a question says about how to look for its answer: what it lists, and what is mere frame. English.

"Origami, macrame or falconry: which of these does the text speak about?" puts three things side by side. That it is the
text that speaks is so of every answer: no place has to say it. Without a list the frame is left as it is: what remains
may be one word ("What does the text say about sports?"), and a place that has it by chance no better than what means
the like.
"""

import re
from collections.abc import Iterator, Sequence

Span = tuple[int, int]
"""Characters, or pieces of a text: ``[start, stop)``."""

_TEXT = (
    r"(?:the|this|that)\s+(?:(?:above|whole|entire|full|given|provided|following)\s+)?"
    r"(?:text|document|passage|article|book|story|transcript|conversation|context)"
)
_SAYS = r"(?:say|state|mention|speak|talk|tell|describe|discuss|refer|report|explain)(?:\s+(?:about|of|to))?\b"
_FRAME = re.compile(
    rf"\b(?:(?:according\s+to|based\s+on)\s+{_TEXT}\b|(?:does|do|did)\s+{_TEXT}\s+{_SAYS}"
    rf"|(?:mentioned|described|discussed|stated|referred\s+to|spoken\s+of)\s+(?:in|by)\s+{_TEXT}\b)",
    re.IGNORECASE,
)
_END = re.compile(
    r"\b(?:last|end|ends|ended|ending|final|finally|conclu\w+|above|recent\w*|latest|newest|so\s+far|next|rest|go\s+on"
    r"|continu\w+|complet\w+|finish\w*|extend\w*)\b",
    re.IGNORECASE,
)
_OR = re.compile(r",?\s+or\s+", re.IGNORECASE)
_ASKS = re.compile(r"\b(?:which|what|who|whom|whose|where|when)\b", re.IGNORECASE)
_CLAUSE = re.compile(r"[:;.?!()\n]")
_WORD = re.compile(r"[\w'’-]+")
_LONGEST = 4  # words of one thing


def frame(text: str) -> list[Span]:
    """The characters of a question that speak of the text itself, or of what it does."""
    return [match.span() for match in _FRAME.finditer(text)]


def asks_for_end(text: str) -> bool:
    """Whether a question has a word for the end of what stands in front of it, or for what is to follow."""
    return _END.search(text) is not None


def alternatives(text: str) -> list[Span]:
    """The characters of each of the things of which a question asks for one, in order; none where it lists nothing.

    Only a list that a colon parts from the question is one. Within a sentence nothing says where the things begin and
    end ("Did Rowan sell or rent the mill?"), and the word that stands nowhere may be the one that is meant.
    """
    for joint in _OR.finditer(text):
        before = [match.end() for match in _CLAUSE.finditer(text, 0, joint.start())]
        begin = before[-1] if before else 0
        behind = _CLAUSE.search(text, joint.end())
        end = behind.start() if behind else len(text)
        items = [*_between_commas(text, begin, joint.start()), *_between_commas(text, joint.end(), end)]
        if _parted(text, begin, end) and all(0 < len(_WORD.findall(text[slice(*item)])) <= _LONGEST for item in items):
            return items
    return []


def _parted(text: str, begin: int, end: int) -> bool:
    """Whether what asks stands on the other side of a colon."""
    asks_before = text[begin - 1 : begin] == ":" and _ASKS.search(text, 0, begin) is not None
    asks_behind = text[end : end + 1] == ":" and _ASKS.search(text, end) is not None
    return (asks_before or asks_behind) and _ASKS.search(text, begin, end) is None


def pieces_of(ends: Sequence[int], span: Span) -> Span:
    """Which pieces of a text have some of its characters ``span``; ``ends``: ascending, where each piece ends."""
    start, stop, begin = len(ends), 0, 0
    for i, end in enumerate(ends):
        if begin < span[1] and end > span[0] and end > begin:
            start, stop = min(start, i), i + 1
        begin = end
    return start, max(start, stop)


def _between_commas(text: str, begin: int, end: int) -> Iterator[Span]:
    for comma in [at for at in range(begin, end) if text[at] == ","]:
        yield begin, comma
        begin = comma + 1
    yield begin, end
