"""How a message ends: which of its last paragraphs ask, which say how to answer, and what they are asked about.

    {document}                                       {document}
                                                     QuayError: berth 17 is closed         what it is asked about
    Who was the harbour master?    a question        Why does this fail?                   a question
    Where does he live?            another           Answer briefly.                       how
    Answer in one sentence.        how

Nothing marks where a document ends and the question begins. So little is taken along, and what is asked about only
where the question by itself has nothing to be looked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.follow_up import leans_on_before, names, points_only
from megacontext_vllm.focus.how_to_answer import is_option, is_rule, requests, says_how, wishes
from megacontext_vllm.focus.messages import Decode, Message
from megacontext_vllm.focus.paragraphs import Paragraph, paragraphs

_RULES = 6  # paragraphs in front of the question that say how to answer it
_FURTHER = 3  # paragraphs among which somebody may say what he wants
_DOUBTED = 0.5  # what a question counts that stands in front of what may be a request, or how to answer it
_OPTION = 0.25  # one of several answers is right
_MOST = 4  # questions that are looked for one by one
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
    beside      what else may ask or is asked about.
    questions   where there are several that stand by themselves, the tokens of each, in their order; else empty.
    about       it is asked about what stands in front of it in its message.
    """

    asks: Paragraph
    start: int
    end: int
    beside: tuple[Beside, ...] = ()
    questions: tuple[Range, ...] = ()
    about: bool = False

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
        ahead = ahead[len(more) :]
        questions = _one_by_one([*reversed(more), asks])
        about = [] if more or questions else _about(asks, ahead, message)
        ahead = ahead[len(about) :]
        doubted = _doubted(asks, ahead)
        told_how = at > 0 or ("\n" in asks.text and says_how(asks.text.rpartition("\n")[2]))
        wish = _wish(ahead) if told_how and not (opening_asks or about or doubted) else []
        may_ask = [paragraph for paragraph in doubted if not says_how(paragraph.text)]
        own = 1.0 if points_only(asks.text) else _DOUBTED * _share(asks, about)
        beside = (
            *Beside.all([paragraph for paragraph in found[:at] if is_option(paragraph.text)], _OPTION),
            *Beside.all(more, 1.0),
            *Beside.all(about, own),
            *Beside.all(may_ask, _DOUBTED * _share(asks, may_ask)),
            *Beside.all(wish, 1.0),
        )
        first = [asks, *more, *about, *doubted, *wish][-1]
        told = _size(about) >= _ENOUGH or any(names(paragraph.text) for paragraph in about)
        return Closing(asks, first.start, found[0].end, beside, questions, about=told)


def _size(found: Sequence[Paragraph]) -> int:
    return sum(paragraph.end - paragraph.start for paragraph in found)


def _share(asks: Paragraph, others: Sequence[Paragraph]) -> float:
    """What longer paragraphs count beside a short one, so that they do not outweigh it."""
    return min(1.0, (asks.end - asks.start) / max(1, _size(others)))


def _asking(found: Sequence[Paragraph], opening_asks: bool) -> int:
    """Which of ``found``, the last one first, asks: the last that neither says how to answer nor offers answers."""
    texts = [paragraph.text for paragraph in found]
    behind = [*takewhile(lambda text: is_option(text) or says_how(text) or is_rule(text), texts)]
    options = sum(map(is_option, behind))
    if options == 1 or (options and opening_asks):
        return 0
    if len(behind) == len(found) or not (options or any(map(says_how, behind))):
        return 0  # a list of what to do, of which nothing says how to answer, is the end of a text
    at = len(behind)
    asks = found[at]
    if asks.whole and requests(asks.text):
        return at
    # It is what somebody wants in his own words, or the end of a document in front of which he has asked.
    return 0 if options or opening_asks or not asks.whole else at


def _more_questions(asks: Paragraph, ahead: Sequence[Paragraph]) -> list[Paragraph]:
    """The questions that stand directly above one, the last one first."""
    below = [asks, *ahead]
    pairs = zip(ahead, below, strict=False)
    more = takewhile(lambda pair: pair[0].whole and not pair[1].apart and "?" in pair[0].text, pairs)
    return [paragraph for paragraph, _ in more] if "?" in asks.text else []


def _one_by_one(asking: Sequence[Paragraph]) -> tuple[Range, ...]:
    """The tokens of each question in these paragraphs, if each of them can be looked for by itself."""
    each = [sentence for paragraph in asking for sentence in paragraph.sentences if "?" in sentence.text]
    if not 1 < len(each) <= _MOST or not all(paragraph.whole for paragraph in asking):
        return ()
    if any(points_only(question.text) or leans_on_before(question.text) for question in each):
        return ()
    return tuple((question.start, question.end) for question in each)


def _about(asks: Paragraph, ahead: Sequence[Paragraph], message: Message) -> list[Paragraph]:
    """What the question is asked about, if it only points at it, the last paragraph first."""
    short = asks.start - message.start < _ABOUT
    if not (points_only(asks.asking.text) or (short and leans_on_before(asks.text))):
        return []
    about: list[Paragraph] = []
    for paragraph in ahead:
        about.append(paragraph)
        size = asks.start - paragraph.start
        if size >= _ABOUT or not paragraph.whole or (paragraph.apart and size >= _ENOUGH):
            break
    return about


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
    if found or asks.apart or requests(asks.text):
        return found
    # "Why does this fail?", and behind it lines that nobody would call a question.
    block = [*takewhile(lambda paragraph: not paragraph.apart, ahead)]
    for paragraph in ahead[len(block) : len(block) + 2]:
        block.append(paragraph)
        if "?" in paragraph.text:
            points = points_only(paragraph.asking.text) or leans_on_before(paragraph.text)
            return block if points and all(paragraph.whole for paragraph in block) else []
    return []


def _wish(ahead: Sequence[Paragraph]) -> list[Paragraph]:
    """The paragraphs in front down from one in which somebody says what he wants."""
    for number, paragraph in enumerate(islice(ahead, _FURTHER), start=1):
        if not paragraph.whole:
            break
        if wishes(paragraph.text):
            return [*ahead[:number]]
    return []
