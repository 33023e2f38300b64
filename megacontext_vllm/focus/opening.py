"""How a message opens: the lines in front of a text that may ask, and which of them are questions of their own.

    Please answer these questions:        what is told with them
    1. Who was the harbour master?        a question
    2. Where does he live?                another

    {document}

Nothing marks where what is asked ends and the document begins: a line belongs to the one above if it asks, too, or is
one of a list.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.closing import MOST_QUESTIONS, Range, stands_alone
from megacontext_vllm.focus.how_to_answer import (
    asks,
    is_item,
    is_option,
    leads_to_request,
    own_words,
    requests,
    says_how,
)
from megacontext_vllm.focus.messages import Decode, Message, has_word
from megacontext_vllm.focus.paragraphs import Paragraph, Sentence, sentences

_LOOK = 128  # tokens of all the lines
_LINE = 64  # of one that is meant for whoever answers
_PLAIN = 32  # of one that need not be; a longer one is the text itself, and would find itself
_LABELLED_LOOK = 256  # tokens in front of a text, of which one line is called the question
_MIN_WORDS = 3
_LABEL = re.compile(
    r"^\W*(?:(?:user|my|the)\s+)?(?:question|query|instruction)\s*:\W*(?=\w)", re.IGNORECASE | re.MULTILINE
)
_EMPTY_LINE = re.compile(r"\n[^\S\n]*\n")


class _Line(NamedTuple):
    """Tokens ``[start, stop)`` of the look, their ``text``, and whether an empty line stands behind it."""

    start: int
    stop: int
    text: str
    parted: bool


@dataclass(frozen=True)
class Opening:
    """first      tokens ``[start, stop)`` of the first line, if it is short enough; (0, 0) without one.
    lines      the same of all lines that belong to it.
    text       of ``lines``.
    asks       whether it seems to ask, as far as can be told.
    how        the tokens of the sentences that say how to answer, where others do not.
    questions  the tokens of each, where several are asked that stand by themselves; else empty.
    """

    first: Range = (0, 0)
    lines: Range = (0, 0)
    text: str = ""
    asks: bool = False
    how: tuple[Range, ...] = ()
    questions: tuple[Range, ...] = ()

    @staticmethod
    def of(tokens: npt.NDArray[np.uint32], message: Message, before: int, decode: Decode) -> "Opening":
        """Of ``message`` in the prompt ``tokens`` (uint32 [N]), as far as it stands in front of ``before``."""
        if not message.opened:
            return Opening()
        low = message.start
        texts = [decode([token]) for token in tokens[low : min(before, low + _LOOK)].tolist()]
        found = list(_belonging(list(_lines(texts))))
        if not found:
            return Opening()
        said = [part for line in found for part in sentences(texts[line.start : line.stop], low + line.start)]
        how = tuple((part.start, part.end) for part in said if part.how)
        return Opening(
            (low, low + found[0].stop),
            (low, low + found[-1].stop),
            "".join(line.text for line in found),
            any(map(_asks, found)),
            how if len(how) < len(said) else (),
            _one_by_one(found, said, low),
        )

    def weights(self, how: float) -> npt.NDArray[np.float32]:
        """What the tokens of ``lines`` count where they ask, float32; ``how``: those that say how to answer."""
        weights = np.ones(self.lines[1] - self.lines[0], dtype=np.float32)
        for start, end in self.how:
            weights[start - self.lines[0] : end - self.lines[0]] = how
        return weights

    @property
    def has_words(self) -> bool:
        """Whether it has words to be looked for."""
        return not says_how(self.text) and bool(own_words(self.text))


def _lines(texts: Sequence[str]) -> Iterator[_Line]:
    """The lines that are ended, of which the first has words enough: "Hello," belongs to the one below."""
    start, words, least = 0, 0, _MIN_WORDS
    for i, text in enumerate(texts):
        words += has_word(text)
        if "\n" in text and words >= least:
            behind = i + 1
            while behind < len(texts) and not has_word(texts[behind]) and not texts[behind].strip():
                behind += 1
            between = text[len(text.rstrip()) :] + "".join(texts[i + 1 : behind])
            yield _Line(start, i + 1, "".join(texts[start : i + 1]), _EMPTY_LINE.search(between) is not None)
            start, words, least = i + 1, 0, 1


def _belonging(lines: Sequence[_Line]) -> Iterator[_Line]:
    """Those that may be meant for whoever answers."""
    for above, line in zip([None, *lines], lines, strict=False):
        size = line.stop - line.start
        if size > _LINE or (size > _PLAIN and not _asks(line)):
            return
        if above is not None and not _goes_on(above, line):
            return
        yield line


def _asks(line: _Line) -> bool:
    said = re.split(r"(?<=[.?!:])\s+", line.text.strip())
    return leads_to_request(line.text) or any(asks(sentence) for sentence in said)


def _goes_on(above: _Line, below: _Line) -> bool:
    if above.parted:
        # "Answer briefly." belongs to it there, too; what begins like a request only may begin the text.
        return ("?" in above.text and "?" in below.text) or says_how(below.text)
    return _is_point(below) or "?" in below.text or requests(below.text) or says_how(below.text) or _heads(above.text)


def _is_point(line: _Line) -> bool:
    return is_item(line.text) or is_option(line.text)


def _heads(line: str) -> bool:
    return line.rstrip().endswith(":")


def _one_by_one(lines: Sequence[_Line], said: Sequence[Sentence], low: int) -> tuple[Range, ...]:
    """The tokens of each question, or, without several, of each point of a list, or of each line that asks."""
    asked = [(part.start, part.end, part.text) for part in said if "?" in part.text]
    listed = [_is_point(line) or (i > 0 and _heads(lines[i - 1].text)) for i, line in enumerate(lines)]
    points = list(compress(lines, listed))
    wanted = [line for line in lines if requests(line.text) and not says_how(line.text)]
    each = [asked, *([(low + line.start, low + line.stop, line.text) for line in found] for found in (points, wanted))]
    several = next((found for found in each if len(found) > 1), [])
    if len(several) > MOST_QUESTIONS or not all(stands_alone(text) for *_, text in several):
        return ()
    return tuple((start, end) for start, end, _ in several)


def labelled(tokens: npt.NDArray[np.uint32], message: Message, asks: Paragraph, decode: Decode) -> Opening | None:
    """A line near the message's start that is called the question, if the end, which is ``asks``, asks nothing."""
    if not message.opened or _LABEL.search(asks.text) or requests(asks.text):
        return None
    low = message.start
    texts = [decode([token]) for token in tokens[low : min(asks.start, low + _LABELLED_LOOK)].tolist()]
    ends = np.cumsum([len(text) for text in texts])
    found = _LABEL.search("".join(texts))
    if found is None:
        return None
    newline = "".join(texts).find("\n", found.end())
    if newline < 0:
        return None
    start, stop = np.searchsorted(ends, [found.end(), newline], side="right").tolist()
    stop = min(stop, start + _LOOK)
    line = (low + start, low + stop)
    return Opening(line, line, "".join(texts[start:stop]))
