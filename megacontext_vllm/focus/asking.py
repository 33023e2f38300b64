"""What one message asks: mostly its last paragraph, sometimes its first (a question or an instruction before a text).

Only the two ends of the message are read: the cost does not depend on how long it is. Which of them asks is often
doubtful; then it is looked for at both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.closing import Closing, Range
from megacontext_vllm.focus.how_to_answer import introduces, requests, says_how
from megacontext_vllm.focus.messages import Decode, Message
from megacontext_vllm.focus.opening import Opening, labelled

_LONG_MESSAGE = 256
_MINOR_WEIGHT = 0.25
_HOW = 0.05


class Doubt(NamedTuple):
    """The opening may be what is asked, and not the end of the message.

    weights    float32 [terms], what the terms count then.
    questions  the terms of each question of the opening, where it has several; else empty.
    likelier   than the end.
    """

    weights: npt.NDArray[np.float32]
    questions: tuple[slice, ...]
    likelier: bool


@dataclass(frozen=True)
class Asking:
    """terms, weights  int64 and float32 [terms]: an opening's tokens, then the question's, and what they count.
    start, end      the question's paragraph and those that belong to it: they must be shown raw.
    opening         ``[start, stop)`` of what the message opens with, if its terms count; (0, 0) without one.
    first           the same whether they count or not, if it is meant for whoever answers.
    asks            the terms that ask; of the opening or of the question's paragraph.
    last            the question stands at the end of its message, and not in front of a text.
    questions       the terms of each question, where several are asked that stand by themselves; else empty.
    doubt           what else may be asked; None where nothing may. ``weights`` and ``asks`` are without it.
    about           ``[start, stop)`` of the terms that are only what it may be asked about; mostly none.
    in_front        their tokens, in front of ``start``; (0, 0) without any.
    """

    terms: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    start: int
    end: int
    opening: Range
    first: Range
    asks: slice
    last: bool
    questions: tuple[slice, ...] = ()
    doubt: Doubt | None = None
    about: Range = (0, 0)
    in_front: Range = (0, 0)

    @staticmethod
    def of(tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int) -> "Asking":
        """What ``message`` of the prompt ``tokens`` (uint32 [N]) asks; no terms if it has no words.

        max_terms: at most this many tokens of a paragraph, from its end.
        """
        opens = Opening.of(tokens, message, message.end, decode)
        opening_asks = requests(opens.text) and not says_how(opens.text)
        closing = Closing.of(tokens, message, decode, max_terms, opening_asks=opening_asks)
        if opens.lines[1] > closing.start:
            opens = Opening.of(tokens, message, closing.start, decode)
        called = labelled(tokens, message, closing.asks, decode)
        opens = called or opens
        leads = called is not None or _is_document(closing, message, opens)
        doubted = not leads and _may_ask(closing, message, opens)
        opening = opens.lines if leads or doubted else opens.first
        # Where the end asks, the first line counts only if it reads like an instruction: else it is the text's title.
        said = decode(tokens[slice(*opening)].tolist()).rstrip()
        if not (leads or doubted) and "?" in closing.asks.text and not said.endswith((":", "?")):
            opening = (0, 0)
        parts = [opening, (closing.asks.start, closing.asks.end), *((part.start, part.end) for part in closing.beside)]
        sizes = [stop - start for start, stop in parts]
        where = list(zip(parts, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        weights, doubt = _weights(closing, sizes, leads), None
        questions = tuple(_among(where, question) for question in (opens if leads else closing).questions)
        if leads:
            weights[0] = opens.weights(_HOW)
        elif doubted:
            alone = np.concatenate([opens.weights(_HOW), np.zeros(sum(sizes[1:]), dtype=np.float32)])
            doubt = Doubt(alone, tuple(_among(where, question) for question in opens.questions), not closing.requests)
            weights[0][:] = 0
        return Asking(
            np.concatenate([tokens[slice(*part)] for part in parts]).astype(np.int64),
            np.concatenate(weights),
            closing.start,
            closing.end,
            opening,
            # What stands in front of a line that is called the question says how to read it.
            (message.start, opens.lines[1]) if called or introduces(opens.text) else (0, 0),
            slice(0, sizes[0]) if leads else _among(where, (closing.asks.asking.start, closing.asks.end)),
            not leads,
            questions,
            doubt,
            *_about(closing, sizes, leads),
        )


def _about(closing: Closing, sizes: Sequence[int], leads: bool) -> tuple[Range, Range]:
    """``about`` and ``in_front`` of ``Asking``."""
    if leads or not closing.about:
        return (0, 0), (0, 0)
    first = sum(sizes[:2])
    return (first, first + sum(sizes[2 : 2 + closing.about])), (closing.beside[closing.about - 1].start, closing.start)


def _weights(closing: Closing, sizes: Sequence[int], leads: bool) -> list[npt.NDArray[np.float32]]:
    """What the terms of the opening, of the paragraph that asks and of each that stands beside it count."""
    opening, asks, *_ = weights = [np.ones(size, dtype=np.float32) for size in sizes]
    closes = sum(sizes[1:])
    if leads:
        for part in weights[1:]:
            part[:] = minor_weight(closes, sizes[0])
        return weights
    # Behind a text that says how to answer, what asks may be its last line as well as the message's first.
    opening[:] = 1 if closing.asks.end < closing.end else minor_weight(sizes[0], closes)
    paragraph = closing.asks
    if not paragraph.whole:
        # The question ends a long paragraph: what stands before its sentence is rather text than question.
        before = paragraph.asking.start - paragraph.start
        asks[:before] = minor_weight(before, sizes[1] - before)
    for how in paragraph.how:
        asks[how.start - paragraph.start : how.end - paragraph.start] = _HOW
    for part, beside in zip(weights[2:], closing.beside, strict=True):
        part[:] = beside.weight
    return weights


def _among(where: Sequence[tuple[Range, int]], tokens: Range) -> slice:
    """Which terms the tokens of a part are; ``where``: each part, and at which of the terms it begins."""
    start, begin = next((part[0], at) for part, at in where if part[0] <= tokens[0] and tokens[1] <= part[1])
    return slice(begin + tokens[0] - start, begin + tokens[1] - start)


def minor_weight(count: int, of: int) -> float:
    """Weight of ``count`` terms beside a question of ``of`` terms: together they stay a fraction of the question."""
    return _MINOR_WEIGHT * min(1.0, of / count) if count else 0.0


def _is_document(closing: Closing, message: Message, opens: Opening) -> bool:
    """The last paragraph asks nothing and the first seems to: question before document."""
    if not opens.text or "?" in closing.asks.text or message.end - message.start <= _LONG_MESSAGE:
        return False
    return "?" in opens.text or not closing.asks.whole


def _may_ask(closing: Closing, message: Message, opens: Opening) -> bool:
    """Whether the opening is as likely to ask as the end: it seems to, or neither does."""
    seems_to = opens.has_words and (opens.asks or not closing.requests)
    return seems_to and message.end - message.start > _LONG_MESSAGE
