"""Find the question in a rendered prompt: what the lenses score the history against.

The engine gets token ids, not messages, so the last user message is recognised by the special tokens of the chat
template. The question is mostly its last paragraph, sometimes its first (an instruction before a document). Only the
two ends of the prompt are looked at: the cost does not depend on the length of the history.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.many import asks_for_many
from megacontext_vllm.focus.present import asks_for_now
from megacontext_vllm.focus.wording import alternatives, asks_for_end, frame, pieces_of

Decode = Callable[[list[int]], str]

# How far back the boundaries of the last user message are searched, and how far in if it began before that.
_LOOK_BACK = 4096
_LOOK_IN = 1024
# How many tokens are decoded one by one to find the last paragraph, and how long an opening instruction may be.
_PARAGRAPH_LOOK = 256
_OPENING_LOOK = 64
_OPENING_PLAIN = 32  # without a question mark; a longer first line is the text itself, and would find itself
_HEADER_TOKENS = 4
_MIN_WORDS = 3
_MINOR_WEIGHT = 0.25
_FRAME_WEIGHT = 0.05  # "... does the text speak about", beside a list: nothing to look for
_RECENT = 64  # tokens of an answer under way
_ASKERS = frozenset({"user", "human"})
_ROLES = _ASKERS | {"assistant", "system", "developer", "model", "tool", "ipython", "function", "observation", "bot"}


@dataclass(frozen=True)
class Query:
    """What is asked.

    terms, weights  int64 and float32 [terms]: token ids in order of the text, and how much each counts.
    start, end      the asking part of the prompt ``[start, end)``: it must be shown raw, with all that follows it.
    opening         ``[start, stop)`` of an instruction at the beginning whose terms count too; (0, 0) without one.
    recent          ``[start, stop)`` of an answer under way, or of its end; (0, 0) without one.
    now, many       whether it asks for what holds now (``present.py``), and for all there is (``many.py``).
    alternatives    ``[start, stop)`` of ``terms`` of each of the things of which it asks for one, and its text.
    document        tokens of the same message in front of the question that it does not ask for the end of; 0 where the
                    question stands in front, or alone.
    """

    terms: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    start: int
    end: int
    opening: tuple[int, int] = (0, 0)
    recent: tuple[int, int] = (0, 0)
    now: bool = False
    many: bool = False
    alternatives: tuple[tuple[int, int, str], ...] = ()
    document: int = 0

    def blank(self, values: npt.NDArray[Any]) -> None:
        """Set ``values`` ``[≥ end]``, one a token, to -1 where the prompt itself asks: it is no evidence for itself."""
        values[self.start : self.end] = -1
        values[slice(*self.opening)] = -1
        values[slice(*self.recent)] = -1

    def answered(self, tokens: npt.NDArray[np.uint32], answer: int) -> tuple["Query", "Query"]:
        """The question while it is being answered, and what the answer is about now.

        tokens uint32 [N] end with the ``answer`` > 0 that were said so far. No part of it is evidence for the question;
        for its own end, whose terms are the second query's, all that was said before is.
        """
        end, recent = len(tokens), tokens[-min(answer, _RECENT) :].astype(np.int64)
        return (
            replace(self, recent=(end - answer, end)),
            replace(
                self,
                terms=recent,
                weights=np.ones(len(recent), dtype=np.float32),
                recent=(end - len(recent), end),
                now=False,
                many=False,
                alternatives=(),
            ),
        )


@dataclass(frozen=True)
class _Message:
    """Tokens ``[start, end)``; ``opened``: the start is where the message begins, not just where the search ended."""

    start: int
    end: int
    opened: bool


@dataclass(frozen=True)
class _Paragraph:
    """Tokens ``[start, end)``; ``sentence``: where its last sentence starts; ``whole``: nothing of it was cut off."""

    start: int
    sentence: int
    end: int
    whole: bool


def find_query(
    tokens: npt.NDArray[np.uint32], special_ids: frozenset[int], decode: Decode, max_terms: int = 64
) -> Query:
    """The question of a prompt.

    tokens       uint32 [N], the whole prompt with the template's special tokens.
    special_ids  ids that never stand for text.
    decode       token ids -> text, called with one or a few ids.
    max_terms    at most this many tokens of the last paragraph, from its end, and as many of an opening instruction.
    returns      Query; empty terms for a prompt without words.
    """
    message = _last_message(tokens, special_ids, decode)
    closing = _last_paragraph(tokens, message, decode, max_terms)
    last = tokens[closing.start : closing.end]
    first, stop = _opening(tokens, special_ids, message, closing.start, decode)
    opening = tokens[first : min(stop, first + max_terms)]
    # Where the end asks, the first line counts only if it reads like an instruction: else it is the document's title.
    if "?" in decode(last.tolist()) and not decode(opening.tolist()).rstrip().endswith((":", "?")):
        opening = tokens[:0]
    weights = np.ones(len(opening) + len(last), dtype=np.float32)
    minor, major = weights[: len(opening)], weights[len(opening) :]
    asks = slice(len(opening) + closing.sentence - closing.start, None)
    if len(opening) and _is_document(closing, message, decode(opening.tolist()), decode(last.tolist())):
        minor, major, asks = major, minor, slice(0, len(opening))
    elif not closing.whole:
        # The question ends a long paragraph: what stands before its sentence is rather document than question.
        before = closing.sentence - closing.start
        major[:before] = _minor_weight(before, len(major) - before)
    minor[:] = _minor_weight(len(minor), len(major))
    terms = np.concatenate([opening, last]).astype(np.int64)
    asking = decode(terms[asks].tolist())
    framed, listed = _worded(asking, terms[asks].tolist(), decode)
    for start, stop in framed:
        weights[asks][start:stop] *= _FRAME_WEIGHT
    return Query(
        terms,
        weights,
        closing.start,
        message.end,
        opening=(first, first + len(opening)) if len(opening) else (0, 0),
        now=asks_for_now(asking),
        many=asks_for_many(asking),
        alternatives=tuple((asks.start + start, asks.start + stop, text) for start, stop, text in listed),
        document=closing.start - message.start if asks.stop is None and not asks_for_end(asking) else 0,
    )


def _worded(asking: str, terms: list[int], decode: Decode) -> tuple[list[tuple[int, int]], list[tuple[int, int, str]]]:
    """Which of ``terms`` are frame beside a list, and which are each of the alternatives, of what ``asking`` says."""
    listed = alternatives(asking)
    if not listed:
        return [], []
    # One by one, tokens lose the space in front, or are a part of a character.
    ends = [len(decode(terms[: i + 1]).rstrip("\ufffd")) for i in range(len(terms))]
    ends = np.maximum.accumulate(ends).tolist()
    return (
        [pieces_of(ends, span) for span in frame(asking)],
        [(*pieces_of(ends, span), asking[slice(*span)].strip()) for span in listed],
    )


def _minor_weight(count: int, of: int) -> float:
    """Weight of ``count`` terms beside a question of ``of`` terms: together they stay a fraction of the question."""
    return _MINOR_WEIGHT * min(1.0, of / count) if count else 0.0


def _is_document(closing: _Paragraph, message: _Message, first: str, last: str) -> bool:
    """The last paragraph asks nothing and the first seems to: question before document."""
    if "?" in last or message.end - message.start <= _PARAGRAPH_LOOK:
        return False
    return "?" in first or not closing.whole


def _has_word(text: str) -> bool:
    return any(map(str.isalnum, text))


def _cuts(tokens: npt.NDArray[np.uint32], special_ids: frozenset[int]) -> npt.NDArray[np.intp]:
    return np.flatnonzero(np.isin(tokens, np.fromiter(special_ids, dtype=np.uint32, count=len(special_ids))))


def _last_message(tokens: npt.NDArray[np.uint32], special_ids: frozenset[int], decode: Decode) -> _Message:
    """The newest message that asks: of a user, or of no known role; failing that the newest of another role."""
    low = max(0, len(tokens) - _LOOK_BACK)
    cuts = (_cuts(tokens[low:], special_ids) + low).tolist()
    runs = [
        (start, end)
        for start, end in zip([low, *(c + 1 for c in cuts)], [*cuts, len(tokens)], strict=True)
        if start < end
    ]
    other: _Message | None = None
    scrap = _Message(len(tokens), len(tokens), True)
    for i in range(len(runs) - 1, -1, -1):
        start, end = runs[i]
        if end - start < _HEADER_TOKENS:
            text = _name(tokens[start:end], decode)
            if not _has_word(text) or text in _ROLES:
                continue
            if end == len(tokens):
                # Most likely the generation prompt of a role with a name of its own; the question if there is no other.
                scrap = _Message(start, end, True)
                continue
        opened = start > low or low == 0
        role, body = _role(tokens, start, end, decode)
        if not role and i and runs[i - 1][1] - runs[i - 1][0] < _HEADER_TOKENS:
            role = _name(tokens[slice(*runs[i - 1])], decode)
        message = _Message(body, end, opened)
        if role in _ASKERS or (role not in _ROLES and (opened or other is None)):
            return message
        # An answer that is being continued asks nothing; a tool's result may.
        if role in _ROLES and role != "assistant" and other is None:
            other = message
    return other or scrap


def _name(run: npt.NDArray[np.uint32], decode: Decode) -> str:
    return decode(run.tolist()).strip().casefold()


def _role(tokens: npt.NDArray[np.uint32], start: int, end: int, decode: Decode) -> tuple[str, int]:
    """(role, first token of the content) of a message whose first line is its role (ChatML), else ("", start)."""
    for stop in range(start + 1, min(start + _HEADER_TOKENS, end)):
        text = decode(tokens[start:stop].tolist())
        if text.endswith("\n"):
            role = text.strip().casefold()
            return (role, stop) if role in _ROLES else ("", start)
    return "", start


def _last_paragraph(tokens: npt.NDArray[np.uint32], message: _Message, decode: Decode, max_terms: int) -> _Paragraph:
    """The last line of the message that has words enough, at most ``max_terms`` tokens from its end."""
    low = max(message.start, message.end - _PARAGRAPH_LOOK)
    texts = [decode([token]) for token in tokens[low : message.end].tolist()]
    worded = [i for i, text in enumerate(texts) if _has_word(text)]
    if not worded:
        return _Paragraph(message.end, message.end, message.end, True)
    end = worded[-1] + 1
    while end < len(texts) and texts[end].strip():
        end += 1  # marks after the last word, such as "?"
    begin, sentence, words = 0, -1, 0
    for i in range(end - 1, -1, -1):
        before, newline, after = texts[i].rpartition("\n")
        words += _has_word(after)
        if words >= _MIN_WORDS and sentence < 0 and texts[i].rstrip().endswith((".", "?", "!")):
            sentence = i + 1
        if newline and words >= _MIN_WORDS:
            begin = i if _has_word(after) else i + 1
            break
        words += bool(newline) and _has_word(before)
    whole = end - begin <= max_terms and (begin > 0 or low == message.start)
    begin = max(begin, end - max_terms)
    return _Paragraph(low + begin, low + max(sentence, begin), low + end, whole)


def _opening(
    tokens: npt.NDArray[np.uint32], special_ids: frozenset[int], message: _Message, before: int, decode: Decode
) -> tuple[int, int]:
    """``[start, stop)`` of the message's first line if it is short enough to be an instruction, else nothing."""
    start = message.start
    if not message.opened:
        # It began before the search did. In a prompt of one long message that is after the last header of the head.
        cuts = _cuts(tokens[:_LOOK_IN], special_ids).tolist()
        start = cuts[-1] + 1 if cuts else 0
        start = _role(tokens, start, len(tokens), decode)[1]
    texts = [decode([token]) for token in tokens[start : min(before, start + _OPENING_LOOK)].tolist()]
    words = 0
    for i, text in enumerate(texts):
        words += _has_word(text)
        if "\n" in text and words >= _MIN_WORDS:
            line = tokens[start : start + i + 1]
            short = len(line) <= _OPENING_PLAIN or "?" in decode(line.tolist())
            return (start, start + len(line)) if short else (0, 0)
    return (0, 0)
