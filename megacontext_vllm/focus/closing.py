"""How a message ends: which of its last paragraphs ask, which say how to answer, and what they are asked about.

    {document}                                       {document}
                                                     QuayError: berth 17 is closed         what it is asked about
    Who was the harbour master?    a question        Why does this fail?                   a question
    Where does he live?            another           Answer briefly.                       how
    Answer in one sentence.        how

Nothing marks where a document ends and the question begins. So what does not ask by itself is looked for twice: as it
is, and with what stands in front of it, which may be the end of a document, or what is really asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.english import is_other, may_be_english
from megacontext_vllm.focus.follow_up import leans_on_before, points_only
from megacontext_vllm.focus.how_to_answer import (
    continues,
    is_item,
    is_option,
    is_rule,
    own_words,
    requests,
    says_how,
)
from megacontext_vllm.focus.messages import Message
from megacontext_vllm.focus.paragraphs import Paragraph, paragraphs
from megacontext_vllm.focus.plain_text import Decode

_RULES = 6  # paragraphs in front of the question that say how to answer it
_DOUBTED = 0.5  # what a question counts that stands in front of what may be a request, or how to answer it
MOST_QUESTIONS = 4  # that are looked for one by one
_HEADING = 24  # tokens of a line over questions
_ABOUT = 96  # tokens that "Why does this fail?" is asked about
_ENOUGH = 12  # of them; less is a heading, or "I get this error:", and belongs to what stands in front of it

Range = tuple[int, int]
"""Tokens ``[start, stop)``."""


class Beside(NamedTuple):
    """Tokens ``[start, end)`` of what counts beside the paragraph that asks, and how much each of them counts."""

    start: int
    end: int
    weight: float

    @staticmethod
    def all(found: Sequence[Paragraph], weight: float) -> "list[Beside]":
        return [Beside(paragraph.start, paragraph.end, weight) for paragraph in found]


@dataclass(frozen=True)
class Closing:
    """asks    the paragraph that asks.
    start, end  it and all that belongs to it, which must be shown.
    beside      what else is looked for.
    questions   where there are several that stand by themselves, the tokens of each, in their order; else empty.
    about       how many of ``beside``, the first ones, are what it may be asked about, if it does not ask by itself.
                They stand in front of ``start``.
    """

    asks: Paragraph
    start: int
    end: int
    beside: tuple[Beside, ...] = ()
    questions: tuple[Range, ...] = ()
    about: int = 0

    @staticmethod
    def of(
        tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int, *, opening_asks: bool
    ) -> "Closing":
        """Of ``message`` in the prompt ``tokens`` (uint32 [N]).

        max_terms     at most this many tokens of a paragraph, from its end.
        opening_asks  its first line asks: then its last ones may be a document's.
        """
        found = list(paragraphs(tokens, message, decode, max_terms))
        if not found:
            return Closing(Paragraph(message.end, message.end), message.end, message.end)
        at = _asking(found, opening_asks)
        asks, ahead = found[at], found[at + 1 :]
        more = _more_questions(asks, ahead)
        questions = _one_by_one([*reversed(more), asks])
        ahead = ahead[len(more) :]
        about = [] if questions or opening_asks else _about(asks, ahead)
        doubted = _doubted(asks, ahead[len(about) :])
        if about:
            about, doubted = [*about, *doubted], []
        may_ask = [paragraph for paragraph in doubted if not says_how(paragraph.text)]
        beside = (
            *Beside.all(about, 1.0),
            *Beside.all([paragraph for paragraph in found[:at] if _has_words(paragraph.text)], 1.0),
            *Beside.all(more, 1.0),
            *Beside.all(may_ask, _DOUBTED * _share(asks, may_ask)),
        )
        return Closing(asks, [asks, *more, *doubted][-1].start, found[0].end, beside, questions, len(about))


def _size(found: Sequence[Paragraph]) -> int:
    return sum(paragraph.end - paragraph.start for paragraph in found)


def _share(asks: Paragraph, others: Sequence[Paragraph]) -> float:
    """What longer paragraphs count beside a short one, so that they do not outweigh it."""
    return min(1.0, (asks.end - asks.start) / max(1, _size(others)))


def _has_words(text: str) -> bool:
    """Whether what offers an answer, or may be a rule, has words to be looked for."""
    return is_option(text) or (is_rule(text) and len(own_words(text)) > 1)


def _asking(found: Sequence[Paragraph], opening_asks: bool) -> int:
    """Which of ``found``, the last one first, asks: the last that neither says how to answer nor offers answers."""
    texts = [paragraph.text for paragraph in found]
    behind = [*takewhile(lambda text: is_option(text) or says_how(text) or is_rule(text), texts)]
    options = sum(map(is_option, behind))
    if options == 1 or (options and opening_asks):
        return 0
    if not (options or any(map(says_how, behind))):
        return 0  # a list of what to do, of which nothing says how to answer, is the end of a text
    at = len(behind)
    if at < len(found) and found[at].whole and requests(texts[at]):
        return at
    # One of the rules may be what is wanted: "Show the master of Elm Quay", above "Keep it short".
    wanted = [i for i, text in enumerate(behind) if not is_option(text) and _has_words(text)]
    if wanted and not opening_asks:
        return wanted[-1]
    # It is what somebody wants in his own words, or the end of a document in front of which he has asked.
    return 0 if at == len(found) or options or opening_asks or not found[at].whole else at


def _more_questions(asks: Paragraph, ahead: Sequence[Paragraph]) -> list[Paragraph]:
    """The questions that stand directly above one, the last one first, and a line that is put over them."""
    below = [asks, *ahead]
    pairs = zip(ahead, below, strict=False)
    follow = takewhile(lambda pair: pair[0].whole and _goes_on(*pair) and "?" in pair[0].text, pairs)
    more = [above for above, _ in follow]
    if not more or "?" not in asks.text:
        return []
    heading = ahead[len(more) : len(more) + 1]
    if heading and not more[-1].apart and heading[0].whole and _size(heading) <= _HEADING:
        more += heading
    return more


def _goes_on(above: Paragraph, below: Paragraph) -> bool:
    """Whether two paragraphs belong to each other, as far as their form says."""
    return not below.apart or (is_item(above.text) and is_item(below.text)) or continues(below.text)


def _one_by_one(asking: Sequence[Paragraph]) -> tuple[Range, ...]:
    """The tokens of each question in these paragraphs, if each of them can be looked for by itself."""
    each = [sentence for paragraph in asking for sentence in paragraph.sentences if "?" in sentence.text]
    if not 1 < len(each) <= MOST_QUESTIONS or not all(paragraph.whole for paragraph in asking):
        return ()
    if any(points_only(question.text) or leans_on_before(question.text) for question in each):
        return ()
    return tuple((question.start, question.end) for question in each)


def _about(asks: Paragraph, ahead: Sequence[Paragraph]) -> list[Paragraph]:
    """What a question that does not ask by itself may be asked about, or what asks in its place; the last one first."""
    if not (points_only(asks.asking.text) or leans_on_before(asks.text) or not requests(asks.text)):
        return []
    about: list[Paragraph] = []
    for paragraph in ahead:
        about.append(paragraph)
        size = _size(about)
        if size >= _ABOUT or not paragraph.whole or (paragraph.apart and size >= _ENOUGH):
            break
        if asks_before(paragraph.text, asks.text):
            break
    return about


def asks_before(text: str, behind: str) -> bool:
    """Whether ``text`` may well ask, in another language, and what stands ``behind`` it say how to answer."""
    return "?" in text and "?" not in behind and not may_be_english(behind) and (is_other(text) or is_other(behind))


def _doubted(asks: Paragraph, ahead: Sequence[Paragraph]) -> list[Paragraph]:
    """What stands in front of the question and says how to answer it, and what may be the question itself."""
    found: list[Paragraph] = []
    for paragraph in islice(ahead, _RULES):
        if not paragraph.whole:
            break
        if not says_how(paragraph.text):
            if "?" in paragraph.text and "?" not in asks.text:
                found.append(paragraph)
            break
        found.append(paragraph)
    return found
