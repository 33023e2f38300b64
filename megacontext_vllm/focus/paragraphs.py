"""The paragraphs at the end of a message, the last one first, as far as a question may stand."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.how_to_answer import says_how
from megacontext_vllm.focus.messages import Message, has_word
from megacontext_vllm.focus.plain_text import Decode, fitting, pieces

_LOOK = 512  # tokens at the end, decoded one by one
_MIN_WORDS = 3
_EMPTY_LINE = re.compile(r"\n[^\S\n]*\n\s*$")

class Sentence(NamedTuple):
    """Tokens ``[start, end)`` of the prompt, their ``text``, and whether it says how to answer."""

    start: int
    end: int
    text: str
    how: bool


@dataclass(frozen=True)
class Paragraph:
    """Tokens ``[start, end)`` of the prompt, and their ``text``.

    whole      nothing of it was cut off.
    sentences  all of it, in their order.
    apart      an empty line stands in front of it, or nothing.
    """

    start: int
    end: int
    whole: bool = True
    text: str = ""
    sentences: tuple[Sentence, ...] = ()
    apart: bool = True

    @property
    def asking(self) -> Sentence:
        """The last of its sentences that may ask."""
        last = Sentence(self.start, self.end, self.text, how=False)
        others = [sentence for sentence in self.sentences if not sentence.how]
        return (others or list(self.sentences) or [last])[-1]

    @property
    def how(self) -> list[Sentence]:
        """Those of its sentences that say how to answer, where others do not."""
        how = [sentence for sentence in self.sentences if sentence.how]
        return how if len(how) < len(self.sentences) else []


def paragraphs(
    tokens: npt.NDArray[np.uint32], message: Message, decode: Decode, max_terms: int
) -> Iterator[Paragraph]:
    """The lines of ``message`` that have words enough, the last one first; of each ``max_terms`` tokens at its end, or
    what they would be if the tokenizer had been made for its script.

    One without words enough belongs to the one behind it.
    """
    low = max(message.start, message.end - _LOOK)
    texts = pieces(tokens[low : message.end].tolist(), decode)
    stop, worded = len(texts), [*map(has_word, texts)]
    while any(worded[:stop]):
        end = max(i for i in range(stop) if worded[i]) + 1
        while end < stop and (texts[end].strip() or not texts[end]):
            end += 1  # marks after the last word, such as "?", of one token or several
        begin, words = 0, 0
        for i in range(end - 1, -1, -1):
            before, newline, after = texts[i].rpartition("\n")
            words += has_word(after)
            if newline and words >= _MIN_WORDS:
                begin = i if has_word(after) else i + 1
                break
            words += bool(newline) and has_word(before)
        first = end - fitting(texts[begin:end][::-1], max_terms)
        whole = first == begin and (begin > 0 or low == message.start)
        yield Paragraph(
            low + first,
            low + end,
            whole,
            decode(tokens[low + first : low + end].tolist()),
            tuple(sentences(texts[first:end], low + first)),
            not begin or _EMPTY_LINE.search(_in_front(texts, begin)) is not None,
        )
        stop = begin


def _in_front(texts: list[str], begin: int) -> str:
    """What stands between the line that begins in this token and the one before."""
    inside = texts[begin]
    return "".join(texts[max(0, begin - 4) : begin]) + inside[: len(inside) - len(inside.lstrip())]


def sentences(texts: list[str], start: int) -> Iterator[Sentence]:
    """Of a paragraph's tokens, from ``start`` on, in their order, each with words enough."""
    spans, stop, words = [], len(texts), 0
    for i in range(len(texts) - 1, -1, -1):
        words += has_word(texts[i])
        if i == 0 or (words >= _MIN_WORDS and texts[i - 1].rstrip().endswith((".", "?", "!"))):
            text = "".join(texts[i:stop])
            spans.append(Sentence(start + i, start + stop, text, says_how(text)))
            stop, words = i, 0
    return reversed(spans)
