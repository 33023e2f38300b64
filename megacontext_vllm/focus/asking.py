"""What one message asks: mostly its last paragraph, sometimes its first (a question or an instruction before a text).

Only the two ends of the message are read: the cost does not depend on how long it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.closing import Closing, Range
from megacontext_vllm.focus.english import is_in_another_script, is_other, may_be_english
from megacontext_vllm.focus.how_to_answer import introduces, requests, says_how
from megacontext_vllm.focus.messages import Message, has_word
from megacontext_vllm.focus.opening import Opening
from megacontext_vllm.focus.plain_text import Decode, fitting, length, pieces

_LOOK = 256  # tokens in which an opening is looked for
_OPENING_LOOK = 64  # of them, as ``plain_text.length`` counts them, for an opening instruction
_OPENING_PLAIN = 32  # without a question mark; a longer first line is the text itself, and would find itself
_LABELLED_LOOK = 256  # tokens in front of a text, of which one line is called the question
_LONG_MESSAGE = 256
_MIN_WORDS = 3
_MINOR_WEIGHT = 0.25
_HOW = 0.05
_ASKS = re.compile(r"\?\W*$")
_LABEL = re.compile(
    r"^\W*(?:(?:user|my|the)\s+)?(?:question|query|instruction)\s*:\W*(?=\w)", re.IGNORECASE | re.MULTILINE
)
_CALLED = (
    "frage pregunta pergunta domanda pytanie вопрос питання ερώτηση soru سؤال السؤال پرسش سوال 问题 問題 提问 質問 질문"
)
_LABEL_ELSEWHERE = re.compile(
    rf"^\W*(?:{'|'.join(_CALLED.split())}|câu\s+hỏi)\s*:\W*(?=\w)", re.IGNORECASE | re.MULTILINE
)
"""In other languages; a line of a document as well, unless what is behind the document is a label, too."""


@dataclass(frozen=True)
class Asking:
    """terms, weights  int64 and float32 [terms]: an opening's tokens, then the question's, and what they count.
    start, end      the question's paragraph and those that belong to it: they must be shown raw.
    opening         ``[start, stop)`` of what the message opens with, if its terms count; (0, 0) without one.
    first           the same whether they count or not, if it is meant for whoever answers.
    asks            the terms that ask; of the opening or of the question's paragraph.
    last            the question stands at the end of its message, and not in front of a text.
    questions       the terms of each question, where several are asked that stand by themselves; else empty.
    about           ``[start, stop)`` of the terms that are only what it may be asked about; mostly none.
    in_front        their tokens, in front of ``start``; (0, 0) without any.
    front           what the message opens with, where that may ask, and the end of it may not.
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
    about: Range = (0, 0)
    in_front: Range = (0, 0)
    front: Opening = field(default_factory=Opening)

    @staticmethod
    def of(tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int) -> "Asking":
        """What ``message`` of the prompt ``tokens`` (uint32 [N]) asks; no terms if it has no words.

        max_terms: at most this many tokens of a paragraph, from its end, and as many of an opening.
        """
        line = _first_line(tokens, message, message.end, decode)
        opens = decode(tokens[slice(*line)].tolist())
        closing = Closing.of(
            tokens, message, decode, max_terms, opening_asks=requests(opens) and not says_how(opens)
        )
        if line[1] > closing.start:
            line = _first_line(tokens, message, closing.start, decode)
        labelled = _labelled(tokens, message, closing, decode)
        start, stop = labelled if labelled[1] else line
        opening = (start, start + fitting(pieces(tokens[start:stop].tolist(), decode), max_terms))
        text = decode(tokens[slice(*opening)].tolist())
        first = (message.start, stop) if labelled[1] else opening if introduces(text) else (0, 0)
        leads = bool(labelled[1]) or (stop > 0 and _is_document(closing, message, text))
        # Where the end asks, the first line counts only if it reads like an instruction: else it is the text's title.
        if not leads and "?" in closing.asks.text and not text.rstrip().endswith((":", "?")):
            opening = (0, 0)
        beside = [(part.start, part.end) for part in closing.beside]
        parts = [opening, (closing.asks.start, closing.asks.end), *beside]
        sizes = [stop - start for start, stop in parts]
        weights = _weights(closing, sizes, leads)
        where = list(zip(parts, np.cumsum([0, *sizes[:-1]]).tolist(), strict=True))
        asking = closing.asks.asking
        asks = slice(0, sizes[0]) if leads else _among(where, (asking.start, closing.asks.end))
        return Asking(
            np.concatenate([tokens[slice(*part)] for part in parts]).astype(np.int64),
            np.concatenate(weights),
            closing.start,
            closing.end,
            opening,
            first,
            asks,
            not leads,
            () if leads else tuple(_among(where, question) for question in closing.questions),
            *_about(closing, sizes, leads),
            _front(tokens, message, closing, decode),
        )


def _front(tokens: npt.NDArray[np.uint32], message: Message, closing: Closing, decode: Decode) -> Opening:
    """``front`` of ``Asking``."""
    end = closing.asks.text
    if message.end - message.start <= _LONG_MESSAGE or any(_ASKS.search(part.text) for part in closing.asks.sentences):
        return Opening()
    found = Opening.of(tokens, message, closing.start, decode)
    # A text in another script may end in a few words of English.
    may_ask = is_in_another_script(found.text) if may_be_english(end) else is_other(end) or is_other(found.text)
    return found if may_ask else Opening()


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


def _is_document(closing: Closing, message: Message, first: str) -> bool:
    """The last paragraph asks nothing and the first seems to: question before document."""
    if "?" in closing.asks.text or message.end - message.start <= _LONG_MESSAGE:
        return False
    return "?" in first or not closing.asks.whole


def _first_line(tokens: npt.NDArray[np.uint32], message: Message, before: int, decode: Decode) -> Range:
    """``[start, stop)`` of the message's first line if it is short enough to be an instruction, else nothing."""
    if not message.opened:
        return (0, 0)
    start = message.start
    texts = pieces(tokens[start : min(before, start + _LOOK)].tolist(), decode)
    words = 0
    for i, text in enumerate(texts[: fitting(texts, _OPENING_LOOK)]):
        words += has_word(text)
        if "\n" in text and words >= _MIN_WORDS:
            line = texts[: i + 1]
            short = length(line) <= _OPENING_PLAIN or "?" in "".join(line)
            return (start, start + len(line)) if short else (0, 0)
    return (0, 0)


def _labelled(tokens: npt.NDArray[np.uint32], message: Message, closing: Closing, decode: Decode) -> Range:
    """``[start, stop)`` of a line near the message's start that is called the question, if its end asks nothing."""
    end = closing.asks.text
    if not message.opened or _LABEL.search(end) or _LABEL_ELSEWHERE.search(end) or requests(end):
        return (0, 0)
    low = message.start
    texts = pieces(tokens[low : min(closing.asks.start, low + _LABELLED_LOOK)].tolist(), decode)
    ends = np.cumsum([len(text) for text in texts])
    found = _LABEL.search("".join(texts))
    if found is None and end.rstrip().endswith(":"):
        found = _LABEL_ELSEWHERE.search("".join(texts))
    if found is None:
        return (0, 0)
    newline = "".join(texts).find("\n", found.end())
    if newline < 0:
        return (0, 0)
    start, stop = np.searchsorted(ends, [found.end(), newline], side="right").tolist()
    return low + start, low + stop
