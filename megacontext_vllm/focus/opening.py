"""How a message opens, where its end may be a document's: the lines in front of it that may ask.

    请回答两个问题：                          what stands in front of the first empty line, if it is short
    1. 石蟾镇的消防队有几辆车？
    2. 画家骆青禾为什么只画夜景？

    {document}                              of which the last paragraph asks nothing, as far as can be told

Nothing marks where what is asked ends and the document begins, and a document opens with lines of its own: so they are
looked for beside what the end may ask, and not instead of it. Only where neither is English: there the rules of
``asking.py`` tell more, and to look for titles was measured to cost more than it finds (docs/quality.md).
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.closing import MOST_QUESTIONS, Range
from megacontext_vllm.focus.english import may_be_english
from megacontext_vllm.focus.follow_up import leans_on_before
from megacontext_vllm.focus.messages import Message
from megacontext_vllm.focus.paragraphs import sentences
from megacontext_vllm.focus.plain_text import Decode, length, pieces

_LOOK = 512  # tokens
_LONGEST = 96  # of the lines, as ``plain_text.length`` counts them
_EMPTY_LINE = re.compile(r"\n[^\S\n]*\n")


@dataclass(frozen=True)
class Opening:
    """lines      tokens ``[start, stop)`` of the prompt; (0, 0) where there are none that may ask.
    text       of ``lines``.
    questions  the tokens of each question, where several are asked that stand by themselves; else empty.
    """

    lines: Range = (0, 0)
    text: str = ""
    questions: tuple[Range, ...] = ()

    @staticmethod
    def of(tokens: npt.NDArray[np.uint32], message: Message, before: int, decode: Decode) -> "Opening":
        """Of ``message`` in the prompt ``tokens`` (uint32 [N]), as far as it stands in front of ``before``."""
        low = message.start
        if not message.opened:
            return Opening()
        texts = pieces(tokens[low : min(before, low + _LOOK)].tolist(), decode)
        text = "".join(texts)
        begin = len(text) - len(text.lstrip())
        parted = _EMPTY_LINE.search(text, begin)
        if parted is None:
            return Opening()
        stop = int(np.searchsorted(np.cumsum([len(piece) for piece in texts]), parted.start(), side="right")) + 1
        if length(texts[:stop]) > _LONGEST or may_be_english(text[: parted.start()]):
            return Opening()
        asking = [one for one in sentences(texts[:stop], low) if "?" in one.text]
        several = 1 < len(asking) <= MOST_QUESTIONS and not any(leans_on_before(one.text) for one in asking)
        questions = tuple((one.start, one.end) for one in asking) if several else ()
        return Opening((low, low + stop), text[: parted.start()], questions)
