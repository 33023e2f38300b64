"""Does a question ask for the text as a whole, or for how it begins or ends? English. And what is shown for it then.

"Summarize this document." has no word that stands where the answer does: what has the word "document" is no better than
any other place. What helps is a little of everywhere: pieces that begin where a paragraph does, evenly spread. A budget
shows as many of them as it has room for, and they are evenly spread whatever it is, since their order is that of the
sequence of van der Corput (1935): the beginning, the end, and each next one in the widest gap that is left.
"""

import re

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.stop_words import STOP_WORDS

_NOUN = (
    r"(?:text|document|doc|passage|article|book|novel|story|transcript|conversation|chat|discussion|dialog(?:ue)?|context"
    r"|file|page|report|paper|log|email|thread|meeting|notes?|speech|speeches|content|material|input|data)s?"
)
_THIS = (
    r"(?:(?:the|this|that|these|our|my|all|whole|entire|full|above|following|attached|uploaded|given|provided|of)\s+)*"
)
_UNITS = r"(?:words?|sentences?|paragraphs?|points?|bullets?|lines?|list|form)"
_LENGTH = rf"(?:in|as|into|using|with)\s+(?:\w+[\s-]+){{0,4}}{_UNITS}\b"
_WHOLE = re.compile(
    r"^\W*(?:(?:please|kindly|now|can|could|would|will|you|i|want|need|to|me|give|write|provide|create|make|a|an|the|short"
    r"|brief|concise|detailed|quick|clear)\W+)*"
    r"(?:summari[sz]e|(?:summary|overview|outline|gist|recap)\s+of)\s+"
    rf"{_THIS}{_NOUN}\b(?=\s*(?:[.?!,:;]|$|so\s+far\b|please\b|briefly\b|for\s+(?:me|us|the\s+board)\b|{_LENGTH}))",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"\b(?:summari[sz]\w+|summary|overview|outline|gist|recap|tl;?dr|synopsis|takeaways"
    r"|(?:what|which)\s+(?:are\s+the\s+)?(?:topics|themes|subjects)"
    r"|(?:main|key|central|major|important)\s+(?:points?|ideas?|topics?|themes?|takeaways?|arguments?|messages?|findings?)"
    r"|(?:suggest|give|write)\b.*\b(?:title|headline))\b",
    re.IGNORECASE,
)
_OF_TEXT = re.compile(
    rf"^\W*(?:what(?:['’]s|\s+is|\s+are|\s+does|\s+do)\s+{_THIS}{_NOUN}\s+(?:all\s+)?(?:about|say|contain|cover|describe)"
    rf"|what\s+happens\s+in\s+{_THIS}{_NOUN}|describe\s+{_THIS}{_NOUN})\b",
    re.IGNORECASE,
)
"""Asks for all of it where the text is spoken of: "What happened then?" does not."""
_WORDS = """
    above abstract arguments attached brief briefly bullet central concise concisely contain contains content
    contents cover covered covers create deal deals describe describes dr eight entire events facts far findings
    five following found four full general generally gist give given happen happened happens headline idea ideas
    important input key length line lines list long main major material message messages nine one outline overview
    paragraph paragraphs point points provide provided purpose quick quickly recap say says sentence sentences seven
    short shortly six subject subjects suggest summaries summarise summarised summarising summarize summarized
    summarizing summary synopsis takeaways tell ten theme themes thing things three title tl tldr topic topics treat
    treats two uploaded whole word words write
"""
_FRAME = frozenset(_WORDS.split())
_NOUNS = re.compile(_NOUN, re.IGNORECASE)
_PART = r"(?:sentence|paragraph|line|chapter|section|page|word|message|question|entry|item|step|remark)s?"
_OF = rf"\s+(?:of|in|from)\s+(?:the|this|that|these|our)\s+(?:\w+\s+)?{_NOUN}\b"
_BEGINNING = re.compile(
    rf"\b(?:{_NOUN}\s+(?:begins?|began|starts?|started|opens?|opened)|(?:first|opening|introductory)\s+(?:few\s+)?{_PART}"
    rf"|(?:beginning|start|opening|introduction|preface|title|author|date|name){_OF}"
    rf"|who\s+wrote\s+(?:the|this|that)\s+{_NOUN})\b",
    re.IGNORECASE,
)
_ENDING = re.compile(
    rf"\b(?:{_NOUN}\s+(?:ends?|ended|concludes?|concluded|finish(?:es|ed)?)|(?:last|final|closing)\s+(?:few\s+)?{_PART}"
    rf"|(?:end|ending|conclusion|last\s+part){_OF})",
    re.IGNORECASE,
)
_LONG = re.compile(r"\b\d+[\s-]+(?:words?|sentences?|paragraphs?|lines?|points?|bullets?|characters?)\b", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]+")
_PIECE = 2  # blocks
_MOST = 512  # pieces: as much as the largest windows show
_SEARCH = 8  # blocks behind its place within which a piece begins with a paragraph
_NEAR = np.linspace(0.75, 0.45, 8, dtype=np.float32)
"""What the first or last blocks of a text are worth where it is asked how it begins or ends, beside the best."""


def asks_for_overview(question: str) -> bool:
    """Whether ``question`` asks for all of a text, and has no word for a part of it."""
    if _WHOLE.search(question):
        return True
    if re.search(r"\d", _LONG.sub("", question)):
        return False
    words = [word.casefold() for word in _WORD.findall(question)]
    texts = [word for word in words if _NOUNS.fullmatch(word)]
    if {*words} - STOP_WORDS - _FRAME - {*texts}:
        return False
    return _ASKS.search(question) is not None or (bool(texts) and _OF_TEXT.search(question) is not None)


def asks_for_ends(question: str) -> tuple[bool, bool]:
    """Whether ``question`` asks for how a text begins or what stands there, and the same of how it ends."""
    return _BEGINNING.search(question) is not None, _ENDING.search(question) is not None


def spread_out(blocks: int, part: tuple[int, int], begins: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
    """Utility float32 ``[blocks]`` in [0, 1] of pieces all over the blocks ``[start, stop)`` of ``part``.

    begins: bool ``[blocks]``, whether a paragraph begins in a block, where pieces had better begin.
    """
    utility = np.zeros(blocks, dtype=np.float32)
    start, stop = part
    room = min((stop - start) // _PIECE, _MOST)
    bits = room.bit_length() - 1
    for order in range(1 << bits if room else 0):
        place = int(f"{order:0{bits}b}"[::-1], 2) if bits else 0  # with the bits reversed
        first = start + place * (stop - start) // (1 << bits)
        ahead = np.flatnonzero(begins[first : min(first + _SEARCH, stop - _PIECE + 1)])
        first += int(ahead[0]) if len(ahead) else 0
        piece = slice(first, first + _PIECE)
        utility[piece] = np.maximum(utility[piece], 1 - np.float32(order) / np.float32(1 << bits))
    if room:
        utility[stop - _PIECE : stop] = 1
    return utility


def raise_ends(
    utility: npt.NDArray[np.float32], part: tuple[int, int], *, first: bool, last: bool
) -> npt.NDArray[np.float32]:
    """``utility`` float32 ``[blocks]`` raised at the first blocks of ``part``, or the last, or both; a new array."""
    raised = utility.copy()
    start, stop = part
    near = _NEAR[: stop - start] * (utility.max(initial=0) or np.float32(1))
    if first:
        raised[start : start + len(near)] = np.maximum(raised[start : start + len(near)], near)
    if last:
        raised[stop - len(near) : stop] = np.maximum(raised[stop - len(near) : stop], near[::-1])
    return raised
