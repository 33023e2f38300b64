"""Find the question in a rendered prompt: what the lenses score the history against, and what must be shown beside it.

The message that asks is read at its two ends (``asking.py``). A question that leans on the one before it ("When did he
die?") takes that one's words along, and its answer's. What a model that is asked is doing about it, a call of a tool,
is looked for beside the question, as what an answer under way speaks of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.asking import Asking
from megacontext_vllm.focus.closing import asks_before
from megacontext_vllm.focus.conversation import Conversation
from megacontext_vllm.focus.english import may_be_english
from megacontext_vllm.focus.follow_up import leans_on_before, names, points_only
from megacontext_vllm.focus.many import asks_for_many
from megacontext_vllm.focus.messages import ASSISTANT, find_messages
from megacontext_vllm.focus.overview import asks_for_ends, asks_for_overview
from megacontext_vllm.focus.plain_text import Decode, plainly
from megacontext_vllm.focus.present import asks_for_now
from megacontext_vllm.focus.wording import alternatives, asks_for_end, frame, pieces_of

_FRAME_WEIGHT = 0.05  # "... does the text speak about", beside a list: nothing to look for
_MAYBE, _UNLIKELY = 0.9, 0.7  # of a question's worth, what one reading of it is worth
_OTHERS = 0.2  # what the other questions count beside one: they may name what it is about
_RECENT = 64  # tokens of an answer under way
_BESIDE_NAME, _NO_NAME = 0.1, 0.5
"""What a word of the question before counts, or of its answer: where they have a name, which counts whole, or none."""
_LEANT_ON = 0.5  # of that, beside the question's own words
_FURTHER_BACK = 0.5  # of that, where that question leans on one before it
_LEANING = 8  # words of a question that may lean on the one before, as far as is known of its language
_OFFER = 32  # tokens at the end of a longer answer
_TEXT = 256  # tokens that are a text to be read, beside a question
_HEADER = 4  # tokens in front of a message that say whose it is

Range = tuple[int, int]
"""Tokens ``[start, stop)`` of the prompt."""


@dataclass(frozen=True)
class Query:
    """What is asked.

    terms, weights  int64 and float32 [terms]: token ids in order of the text, and how much each counts.
    start, end      the asking part of the prompt ``[start, end)``: it must be shown raw, with all that follows it, but
                    for ``result``.
    opening         an instruction at the beginning whose terms count too; (0, 0) without one.
    recent          an answer under way, or its end; (0, 0) without one.
    now, many       whether it asks for what holds now (``present.py``), and for all there is (``many.py``).
    alternatives    ``[start, stop)`` of ``terms`` of each of the things of which it asks for one, and its text.
    document        tokens of text to be read, in front of the question in its message, or of ``result``, of which it
                    does not ask for the end; 0 where the question stands in front, or alone.
    reading         the text that it is asked of: in its message, or what tools returned, or all that was said before.
    overview        it asks for all of ``reading`` (``overview.py``).
    ends            whether it asks for how ``reading`` begins, and for how it ends.
    instructions    tokens up to the end of the system message that the prompt begins with.
    leans_on        the same as ``terms`` and ``weights`` of the question before and its answer, if it leans on them.
    result          what stands behind it and is read for it: what tools returned, or an answer that has begun; (0, 0)
                    without any.
    step            the call of a tool that ``result`` answers, or its end; (0, 0) without one.
    own             what else the conversation says of what is asked, which is no evidence for it.
    beside          what of the conversation must be shown for the question to be understood, the first before the rest.
    questions       where several are asked that stand by themselves, or what is asked is doubtful: each, to be looked
                    for by itself.
    worth           of the best place for it, beside the best for others.
    """

    terms: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]
    start: int
    end: int
    opening: Range = (0, 0)
    recent: Range = (0, 0)
    now: bool = False
    many: bool = False
    alternatives: tuple[tuple[int, int, str], ...] = ()
    document: int = 0
    reading: Range = (0, 0)
    overview: bool = False
    ends: tuple[bool, bool] = (False, False)
    instructions: int = 0
    leans_on: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None
    result: Range = (0, 0)
    step: Range = (0, 0)
    own: tuple[Range, ...] = ()
    beside: tuple[Range, ...] = ()
    questions: tuple["Query", ...] = ()
    worth: float = 1.0

    @property
    def asking(self) -> tuple[Range, ...]:
        """Where the prompt itself asks, which is no evidence for itself; the parts may overlap."""
        return ((self.start, self.end), self.opening, self.recent, *self.own)

    def blank(self, values: npt.NDArray[Any], first: int = 0) -> None:
        """Set ``values``, one a token from the token ``first`` on, to -1 where the prompt itself asks."""
        for start, stop in self.asking:
            values[max(0, start - first) : max(0, stop - first)] = -1

    def outside(self, places: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
        """Which of ``places``, ascending tokens of the prompt, are not where it asks."""
        found = np.ones(len(places), dtype=np.bool_)
        for start, stop in self.asking:
            found[slice(*np.searchsorted(places, (start, stop)))] = False
        return found

    def within(self, stop: int) -> npt.NDArray[np.intp]:
        """The other tokens of the first ``stop``: where it asks, ascending."""
        parts = [np.arange(start, min(end, stop)) for start, end in self.asking if start < min(end, stop)]
        return np.unique(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.intp)

    def before(self) -> "Query | None":
        """What it leans on, as a query; None if it stands alone."""
        if self.leans_on is None:
            return None
        return self._plain(*self.leans_on)

    def spelled_out(self) -> "Query":
        """The same with what it leans on among its terms, behind its own."""
        if self.leans_on is None:
            return self
        terms, weights = self.leans_on
        return replace(
            self,
            terms=np.concatenate([self.terms, terms]),
            weights=np.concatenate([self.weights, np.float32(_LEANT_ON) * weights]),
        )

    def answered(self, tokens: npt.NDArray[np.uint32], answer: int) -> tuple["Query", "Query"]:
        """The question while it is being answered, and what the answer is about now.

        tokens uint32 [N] end with the ``answer`` > 0 that were said so far. No part of it is evidence for the question;
        for its own end, whose terms are the second query's, all that was said before is.
        """
        end = len(tokens)
        recent = (end - min(answer, _RECENT), end)
        return replace(self, recent=(end - answer, end)), self._about(tokens, recent)

    def doing(self, tokens: npt.NDArray[np.uint32]) -> "Query | None":
        """What the model called a tool for, to be looked for beside the question; None if it called none.

        tokens uint32 [N], the prompt.
        """
        return self._about(tokens, self.step) if self.step[0] < self.step[1] else None

    def _about(self, tokens: npt.NDArray[np.uint32], said: Range) -> "Query":
        terms = tokens[slice(*said)].astype(np.int64)
        return replace(self._plain(terms, np.ones(len(terms), dtype=np.float32)), recent=said)

    def _plain(self, terms: npt.NDArray[np.int64], weights: npt.NDArray[np.float32]) -> "Query":
        """Other terms in the same prompt, of which nothing is known but that they are looked for."""
        return replace(
            self, terms=terms, weights=weights, leans_on=None, now=False, many=False, alternatives=(), questions=()
        )


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
    decode = plainly(decode)
    messages, instructions = find_messages(tokens, special_ids, decode)
    talk = Conversation.of(messages, len(tokens))
    asked = Asking.of(tokens, talk.question, decode, max_terms)
    text = decode(asked.terms[asked.asks].tolist())
    framed, listed = _worded(text, asked.terms[asked.asks].tolist(), decode)
    for start, stop in framed:
        asked.weights[asked.asks][start:stop] *= _FRAME_WEIGHT
    first, for_end = asked.asks.start, asks_for_end(text)
    query = Query(
        asked.terms,
        asked.weights,
        asked.start,
        talk.question.end,
        opening=asked.opening,
        now=asks_for_now(text),
        many=asks_for_many(text),
        alternatives=tuple((first + start, first + stop, text) for start, stop, text in listed),
        document=asked.start - talk.question.start if asked.last and not for_end else 0,
        reading=_reading(talk, asked, instructions),
        overview=asks_for_overview(text),
        ends=asks_for_ends(text),
        instructions=instructions,
        beside=tuple(part for part in (asked.first, asked.in_front) if part[1]),
    )
    if not listed and not query.overview and (leans_on_before(text) or (talk.before and points_only(text))):
        query = _leaning(query, tokens, talk, decode, max_terms)
    if talk.results:
        query = _working(query, talk, for_end)
    several = _one_by_one(query, asked.questions, decode) or _both_ways(query, asked, decode)
    query = _with_front(replace(query, questions=several), asked, tokens, decode)
    told = query.questions or query.leans_on is not None or query.overview or may_be_english(text)
    if told or query.document >= _TEXT or text.count("?") > 1 or len(text.split()) > _LEANING:
        return query
    return _maybe_leaning(query, tokens, talk, decode, max_terms)


def _both_ways(query: Query, asked: Asking, decode: Decode) -> tuple[Query, ...]:
    """``query`` without what it may be asked about, and with it; and that alone, if it asks and ``query`` may not."""
    if not asked.in_front[1]:
        return ()
    about = slice(*asked.about)
    weights = query.weights.copy()
    weights[about] = 0
    alone = replace(query, weights=weights)
    both = replace(query, own=(*query.own, asked.in_front), worth=_MAYBE)
    if not asks_before(decode(asked.terms[about].tolist()), decode(asked.terms[asked.asks].tolist())):
        return alone, both
    return replace(alone, worth=_UNLIKELY), both, replace(both, weights=query.weights - weights, worth=1.0)


def _one_by_one(query: Query, questions: Sequence[slice], decode: Decode) -> tuple[Query, ...]:
    """Each of the ``questions`` of ``query``, slices of its terms; what is said beside them belongs to each."""
    found = []
    for question in questions:
        weights = query.weights.copy()
        for other in questions:
            if other != question:
                weights[other] *= np.float32(_OTHERS / (len(questions) - 1))
        text = decode(query.terms[question].tolist())
        one = query._plain(query.terms, weights)
        found.append(replace(one, now=asks_for_now(text), many=asks_for_many(text)))
    return tuple(found)


def _with_front(query: Query, asked: Asking, tokens: npt.NDArray[np.uint32], decode: Decode) -> Query:
    """``query``, and beside it what the message opens with, if that may ask."""
    front = asked.front
    start, stop = front.lines
    if not stop or (asked.opening == front.lines and not asked.last):
        return query
    asks = "?" in front.text
    terms = tokens[start:stop].astype(np.int64)
    one = query._plain(terms, np.ones(len(terms), dtype=np.float32))
    one = replace(one, own=(*query.own, front.lines), worth=1.0 if asks else _MAYBE)
    parts = [slice(begin - start, end - start) for begin, end in front.questions]
    ends = query.questions or (query,)
    if asks:
        ends = tuple(replace(end, worth=_UNLIKELY * end.worth) for end in ends)
    return replace(
        query,
        questions=(*ends, *(_one_by_one(one, parts, decode) or [one])),
        own=(*query.own, front.lines) if asks else query.own,
        beside=(*query.beside, front.lines),
    )


def _reading(talk: Conversation, asked: Asking, instructions: int) -> Range:
    """What is asked of: what stands beside the question in its message, if it is a text, else what was said before."""
    message = talk.question
    beside = (message.start, asked.start) if asked.last else (asked.opening[1], message.end)
    return beside if beside[1] - beside[0] >= _TEXT else (min(instructions, message.start), message.start)


def _leaning(
    query: Query, tokens: npt.NDArray[np.uint32], talk: Conversation, decode: Decode, max_terms: int
) -> Query:
    """``query`` with what it leans on: the words of the question before, and of how its answer begins and ends."""
    terms, weights, own, beside = [], [], [*query.own], [*query.beside]
    worth = 1.0
    for number, exchange in enumerate(talk.before):
        asked = Asking.of(tokens, exchange.question, decode, max_terms)
        parts = [(asked.start, asked.end) if asked.last else asked.opening]
        if exchange.answer is not None:
            start, end = exchange.answer.start, exchange.answer.end
            # It begins with what was asked for, and ends with what else might be.
            parts += [(start, min(end, start + max_terms)), (max(start + max_terms, end - _OFFER), end)]
        parts = [part for part in parts if part[0] < part[1]]
        if number == 0:
            beside += parts
        own += parts
        words = [tokens[slice(*part)].astype(np.int64) for part in parts]
        named = [_named(part.tolist(), decode) for part in words]
        other = _BESIDE_NAME if any(named) else _NO_NAME
        for part, pieces in zip(words, named, strict=True):
            terms.append(part)
            weights.append(np.full(len(part), worth * other, dtype=np.float32))
            for first, last in pieces:
                weights[-1][first:last] = worth
        if not leans_on_before(decode(asked.terms[asked.asks].tolist())):
            break
        worth *= _FURTHER_BACK
    if not terms:
        return query
    leans_on = (np.concatenate(terms), np.concatenate(weights))
    return replace(query, leans_on=leans_on, own=tuple(own), beside=tuple(beside))


def _maybe_leaning(
    query: Query, tokens: npt.NDArray[np.uint32], talk: Conversation, decode: Decode, max_terms: int
) -> Query:
    """``query`` as it is, with what it would lean on, and with what of that only the answer said, if it was short."""
    leaning = _leaning(query, tokens, talk, decode, max_terms)
    if leaning.leans_on is None:
        return query
    readings = [query, replace(leaning, worth=_MAYBE)]
    question, answer = talk.before[0].question, talk.before[0].answer
    if answer is not None and answer.end - answer.start <= _OFFER:
        said = tokens[answer.start : answer.end].astype(np.int64)
        said = said[~np.isin(said, tokens[max(question.start, question.end - _OFFER) : question.end])]
        if len(said):
            readings.append(replace(readings[1], leans_on=(said, np.ones(len(said), dtype=np.float32))))
    return replace(query, questions=tuple(readings), beside=leaning.beside)


def _named(terms: list[int], decode: Decode) -> list[Range]:
    """Which of ``terms`` are written like names."""
    found = names(decode(terms))
    ends = _ends(terms, decode) if found else []
    return [pieces_of(ends, span) for span in found]


def _working(query: Query, talk: Conversation, for_end: bool) -> Query:
    """``query`` where something stands behind the question: what a tool returned, or an answer that has begun."""
    result = (talk.results[0].start, talk.results[-1].end)
    step, beside = (0, 0), [(query.start, query.end)]
    if talk.step is not None:
        step = (max(talk.step.start, talk.step.end - _RECENT), talk.step.end)
        beside.append((step[0], result[0]))
    said = [(message.start, message.end) for message in talk.said]
    if talk.results[-1].role != ASSISTANT:
        read = result[1] - result[0]
        query = replace(query, document=0 if for_end else read, reading=result if read >= _TEXT else query.reading)
    return replace(
        query,
        result=result,
        step=step,
        own=(*query.own, *said),
        # Whose they are stands in front of them, and is worth less.
        beside=(*beside, *query.beside, *((max(0, start - _HEADER), start) for start, _ in beside)),
    )


def _worded(asking: str, terms: list[int], decode: Decode) -> tuple[list[Range], list[tuple[int, int, str]]]:
    """Which of ``terms`` are frame beside a list, and which are each of the alternatives, of what ``asking`` says."""
    listed = alternatives(asking)
    if not listed:
        return [], []
    ends = _ends(terms, decode)
    return (
        [pieces_of(ends, span) for span in frame(asking)],
        [(*pieces_of(ends, span), asking[slice(*span)].strip()) for span in listed],
    )


def _ends(terms: list[int], decode: Decode) -> list[int]:
    """Where each of ``terms`` ends in their text."""
    # One by one, tokens lose the space in front, or are a part of a character.
    ends = [len(decode(terms[: i + 1]).rstrip("\ufffd")) for i in range(len(terms))]
    ascending: list[int] = np.maximum.accumulate(ends).tolist()
    return ascending
