"""What one message asks: mostly its last paragraph, sometimes its first (a question or an instruction before a text).

Behind the question may stand how it is to be answered, and in front of it, too. Only the two ends of the message are
read: the cost does not depend on how long it is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.how_to_answer import introduces, requests, says_how
from megacontext_vllm.focus.messages import Decode, Message, has_word

# How many tokens are decoded one by one to find the question, and how long an opening instruction may be.
_CLOSING_LOOK = 512
_OPENING_LOOK = 64
_OPENING_PLAIN = 32  # without a question mark; a longer first line is the text itself, and would find itself
_LONG_MESSAGE = 256
_MIN_WORDS = 3
_MINOR_WEIGHT = 0.25
_HOW = 0.05
_RULES = 6  # paragraphs in front of the question that say how to answer it
_DOUBTED = 0.5  # what a question counts that stands in front of what may be a request, or how to answer it


@dataclass(frozen=True)
class Asking:
    """terms, weights  int64 and float32 [terms]: an opening's tokens, then the question's, and what they count.
    start, end      the question's paragraph and those that say how to answer it: they must be shown raw.
    opening         ``[start, stop)`` of what the message opens with, if its terms count; (0, 0) without one.
    first           the same whether they count or not, if it is meant for whoever answers.
    asks            the terms that ask; of the opening or of the question's paragraph.
    last            the question stands at the end of its message, and not in front of a text.
    """

    terms: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    start: int
    end: int
    opening: tuple[int, int]
    first: tuple[int, int]
    asks: slice
    last: bool

    @staticmethod
    def of(tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int) -> "Asking":
        """What ``message`` of the prompt ``tokens`` (uint32 [N]) asks; no terms if it has no words.

        max_terms: at most this many tokens of a paragraph, from its end, and as many of an opening.
        """
        closing, shown, doubted = _closing(tokens, message, decode, max_terms)
        parts = [tokens[part.start : part.end] for part in (closing, *doubted)]
        last = np.concatenate(parts)
        first, stop = _opening(tokens, message, shown.start, decode)
        opening = tokens[first : min(stop, first + max_terms)]
        opened = (first, first + len(opening)) if len(opening) else (0, 0)
        text = decode(opening.tolist())
        line = opened if introduces(text) else (0, 0)
        # Where the end asks, the first line counts only if it reads like an instruction: else it is the text's title.
        if "?" in closing.text and not text.rstrip().endswith((":", "?")):
            opening, opened = opening[:0], (0, 0)
        weights = np.ones(len(opening) + len(last), dtype=np.float32)
        minor, major = weights[: len(opening)], weights[len(opening) :]
        major[len(parts[0]) :] = _DOUBTED * min(1.0, len(parts[0]) / max(1, len(last) - len(parts[0])))
        asks = slice(len(opening) + closing.sentence - closing.start, len(opening) + len(parts[0]))
        behind = True
        if len(opening) and _is_document(closing, message, text):
            minor, major, asks, behind = major, minor, slice(0, len(opening)), False
        elif not closing.whole:
            # The question ends a long paragraph: what stands before its sentence is rather text than question.
            before = closing.sentence - closing.start
            major[:before] = minor_weight(before, len(parts[0]) - before)
        for start, stop in closing.how:
            major[start:stop] = np.minimum(major[start:stop], _HOW)
        # Behind a text that says how to answer, what asks may be its last line as well as the message's first.
        minor[:] = 1 if behind and closing.end < shown.end else minor_weight(len(minor), len(major))
        terms = np.concatenate([opening, last]).astype(np.int64)
        return Asking(terms, weights, shown.start, shown.end, opened, line, asks, behind)


@dataclass(frozen=True)
class _Paragraph:
    """Tokens ``[start, end)``; ``whole``: nothing of it was cut off.

    sentence  where the last of its sentences starts that asks, as far as can be told.
    how       those that say how to answer, from its start, where others do not.
    """

    start: int
    sentence: int
    end: int
    whole: bool
    text: str = ""
    how: tuple[tuple[int, int], ...] = ()


def minor_weight(count: int, of: int) -> float:
    """Weight of ``count`` terms beside a question of ``of`` terms: together they stay a fraction of the question."""
    return _MINOR_WEIGHT * min(1.0, of / count) if count else 0.0


def _is_document(closing: _Paragraph, message: Message, first: str) -> bool:
    """The last paragraph asks nothing and the first seems to: question before document."""
    if "?" in closing.text or message.end - message.start <= _LONG_MESSAGE:
        return False
    return "?" in first or not closing.whole


def _closing(
    tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int
) -> tuple[_Paragraph, _Paragraph, list[_Paragraph]]:
    """The paragraph at the end of a message that asks; all that must be shown with it; and what may ask, too."""
    found: list[_Paragraph] = []
    for paragraph in _paragraphs(tokens, message, decode, max_terms):
        found.append(paragraph)
        if not says_how(paragraph.text):
            break
    if not found:
        nothing = _Paragraph(message.end, message.end, message.end, True)
        return nothing, nothing, []
    last, asking = found[0], found[-1]
    if len(found) > 1 and not (asking.whole and requests(asking.text)):
        # What stands in front is the text: it says how to answer, and what is asked if anything is.
        asking = last
        found = [last]
    doubted: list[_Paragraph] = []
    start = asking.start
    ahead = _paragraphs(tokens, Message(message.role, message.start, asking.start, message.opened), decode, max_terms)
    for paragraph in islice(ahead, _RULES):
        if not paragraph.whole:
            break
        if not says_how(paragraph.text):
            if "?" in paragraph.text and "?" not in asking.text:
                doubted.append(paragraph)
                start = paragraph.start
            break
        start = paragraph.start
    return asking, _Paragraph(start, start, last.end, True), doubted


def _paragraphs(
    tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int
) -> Iterator[_Paragraph]:
    """The lines of a message that have words enough, the last one first, each at most ``max_terms`` tokens of its end.

    One without words enough belongs to the one behind it.
    """
    low = max(message.start, message.end - _CLOSING_LOOK)
    texts = [decode([token]) for token in tokens[low : message.end].tolist()]
    stop = len(texts)
    while stop:
        worded = [i for i in range(stop) if has_word(texts[i])]
        if not worded:
            return
        end = worded[-1] + 1
        while end < stop and texts[end].strip():
            end += 1  # marks after the last word, such as "?"
        begin, words = 0, 0
        for i in range(end - 1, -1, -1):
            before, newline, after = texts[i].rpartition("\n")
            words += has_word(after)
            if newline and words >= _MIN_WORDS:
                begin = i if has_word(after) else i + 1
                break
            words += bool(newline) and has_word(before)
        whole = end - begin <= max_terms and (begin > 0 or low == message.start)
        first = max(begin, end - max_terms)
        sentences = list(_sentences(texts[first:end]))
        how = [(start, stop) for start, stop in sentences if says_how("".join(texts[first + start : first + stop]))]
        sentence = max((span for span in sentences if span not in how), default=sentences[-1])
        yield _Paragraph(
            low + first,
            low + first + sentence[0],
            low + end,
            whole,
            decode(tokens[low + first : low + end].tolist()),
            tuple(how) if len(how) < len(sentences) else (),
        )
        stop = begin


def _sentences(texts: list[str]) -> Iterator[tuple[int, int]]:
    """The sentences ``[start, stop)`` of a paragraph's tokens, in their order, each with words enough."""
    spans, stop, words = [], len(texts), 0
    for i in range(len(texts) - 1, -1, -1):
        words += has_word(texts[i])
        if i == 0 or (words >= _MIN_WORDS and texts[i - 1].rstrip().endswith((".", "?", "!"))):
            spans.append((i, stop))
            stop, words = i, 0
    return reversed(spans)


def _opening(tokens: npt.NDArray[np.uint32], message: Message, before: int, decode: Decode) -> tuple[int, int]:
    """``[start, stop)`` of the message's first line if it is short enough to be an instruction, else nothing."""
    if not message.opened:
        return (0, 0)
    start = message.start
    texts = [decode([token]) for token in tokens[start : min(before, start + _OPENING_LOOK)].tolist()]
    words = 0
    for i, text in enumerate(texts):
        words += has_word(text)
        if "\n" in text and words >= _MIN_WORDS:
            line = tokens[start : start + i + 1]
            short = len(line) <= _OPENING_PLAIN or "?" in decode(line.tolist())
            return (start, start + len(line)) if short else (0, 0)
    return (0, 0)
