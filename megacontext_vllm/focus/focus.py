"""The whole way from a prompt to its Working Context, the same wherever one is made: in the engine and in evaluation.

question → scores of the blocks → what is pinned → allocation; and what is done where gists do not fit.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.errors import BudgetError
from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.focus.alternatives import sought
from megacontext_vllm.focus.blend import blend
from megacontext_vllm.focus.encoder import Encoder, EncoderLens
from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.indexing import index
from megacontext_vllm.focus.leaning import narrow
from megacontext_vllm.focus.lexical import Found, LexicalLens
from megacontext_vllm.focus.meaning import MeaningLens
from megacontext_vllm.focus.neighbours import apart
from megacontext_vllm.focus.overview import raise_ends, spread_out
from megacontext_vllm.focus.pins import pins
from megacontext_vllm.focus.plain_text import Decode
from megacontext_vllm.focus.present import told_backwards
from megacontext_vllm.focus.query import Query, find_query
from megacontext_vllm.focus.second_look import look_again, look_ahead
from megacontext_vllm.focus.surroundings import answering, outdate, surround, versions, without_rivals
from megacontext_vllm.focus.text_index import TextIndex
from megacontext_vllm.focus.vocabulary import reader, special_ids, surface_strings
from megacontext_vllm.focus.working_context import WorkingContext
from megacontext_vllm.nets.lensnet import SHIPPED, load
from megacontext_vllm.tree.nodes import BLOCK

logger = logging.getLogger("vllm.megacontext")

_CERTAIN, _HOPS = 0.56, 3
"""What the second look gives to a place that a name has with one other at most; how many of them there may be."""
_SAID, _SPOKEN = 0.97, 0.25
"""What the best place for what an answer is saying is worth, beside the best for its question, if it has so much of it;
less, the less it has: some place is always the best."""


@dataclass(frozen=True)
class Scored:
    """A history of ``length`` tokens, what it asks, and float32 ``utility`` [length // 32] of its blocks for that.

    ``answer``: how many of the tokens, at the end, are an answer under way; the prompt is what stands before.
    ``whole``: every lens was heard; else one failed, and another time may do better.
    ``anywhere``: what answers was found where it stands, or all there is was asked for: the end is like any other part.
    """

    length: int
    query: Query
    utility: npt.NDArray[np.float32]
    answer: int = 0
    whole: bool = True
    anywhere: bool = False


@dataclass(frozen=True)
class Focus:
    """The lens, the tokenizer facts and the settings that decide what is shown of any prompt. Threads may share it.

    lens                 finds what shares words with the question.
    special_ids, decode  as ``find_query`` wants them.
    head_tokens          first tokens to pin raw, at most an eighth of the window; longer instructions up to a quarter.
    tail_tokens          last tokens to pin raw, with a question at most an eighth of the window; a longer question
                         from its start, and so one behind a document if what answers was found. At most about half of
                         the window. What else is pinned: ``pins.py``.
    gap_ids              token ids of the marker in place of a hidden span.
    meaning              finds what says it in other words; None: nothing does.
    encoder              reads what both have found once more; None: nothing does.
    """

    lens: LexicalLens
    special_ids: frozenset[int]
    decode: Decode
    head_tokens: int
    tail_tokens: int
    gap_ids: tuple[int, ...]
    meaning: MeaningLens | None = None
    encoder: EncoderLens | None = None

    @staticmethod
    def of(tokenizer: Any, settings: MegaContextConfig, encoder: Encoder | None = None) -> "Focus":
        """The focus that ``settings`` ask for, over any tokenizer of transformers or vLLM.

        ``encoder``: what ``nets.sentence_encoder.encoder_of`` makes of the same settings.
        """
        lexical = LexicalLens(surface_strings(tokenizer))
        meaning = None
        if settings.lens == "blend":
            meaning = MeaningLens(lexical.spelling, load(settings.lens_net or SHIPPED), lexical.ending)

        read = reader(tokenizer)

        @lru_cache(maxsize=1 << 18)
        def alone(token: int) -> str:
            return read([token])

        def decode(ids: list[int]) -> str:
            # Most calls are for one token, and a tokenizer takes 10 µs for each.
            return alone(ids[0]) if len(ids) == 1 else read(ids)

        return Focus(
            lexical,
            special_ids=special_ids(tokenizer),
            decode=decode,
            head_tokens=settings.head_tokens,
            tail_tokens=settings.tail_tokens,
            gap_ids=tuple(tokenizer.encode(settings.gap_marker, add_special_tokens=False)),
            meaning=meaning,
            encoder=None if encoder is None else EncoderLens(encoder, decode, lexical.ending),
        )

    @property
    def calibrated(self) -> bool:
        """Whether ``calibration.expected_gain`` was measured with these lenses."""
        return self.meaning is not None and self.encoder is None

    def index_of(self, tokens: npt.NDArray[np.uint32]) -> TextIndex:
        """Of the first tokens of prompts to come, uint32 [N ≥ 1]; no word may go on behind them."""
        return index(tokens, self.lens, None if self.meaning is None else self.meaning.words)

    def score(self, tokens: npt.NDArray[np.uint32], index: TextIndex | None = None) -> Scored:
        """What a whole prompt (uint32 [N], with the template's special tokens) asks, and where it may be answered.

        ``index``: of its first tokens, at most the full blocks; changes how long it takes and nothing else.
        """
        query = find_query(tokens, self.special_ids, self.decode)
        if query.overview:
            return Scored(len(tokens), query, self._spread_out(tokens, query), anywhere=True)
        history = History(tokens, self.lens.spelling, index)
        utility, whole, anywhere = self._each(history, query)
        doing = query.doing(tokens)
        if doing is not None:
            utility = self._beside(history, utility, doing, query.terms)
        if not utility.any() and query.document:  # nothing of the text is like the question: some of all of it may help
            utility = self._spread_out(tokens, query)
        if any(query.ends):
            first, last = query.ends
            utility = raise_ends(utility, _whole_blocks(query.reading), first=first, last=last)
        return Scored(len(tokens), query, utility, whole=whole, anywhere=anywhere)

    def _each(self, history: History, query: Query) -> tuple[npt.NDArray[np.float32], bool, bool]:
        """The same as ``_utility``; where several questions are asked, of whatever is best for any of them."""
        if not query.questions:
            return self._utility(history, query)
        found, whole, anywhere = zip(*(self._utility(history, one) for one in query.questions), strict=True)
        best = [float(utility.max(initial=0)) for utility in found]
        both = np.zeros_like(found[0])
        for one, utility, most in zip(query.questions, found, best, strict=True):
            np.maximum(both, np.float32(one.worth * max(best) / (most or 1)) * utility, out=both)
        return both, all(whole), all(anywhere)

    def score_again(
        self, tokens: npt.NDArray[np.uint32], asked: Scored, index: TextIndex | None = None
    ) -> Scored:
        """The same while it is answered: uint32 [N], the tokens that ``asked`` was made of by ``score``, and what was
        said since, one at least.
        """
        answer = len(tokens) - asked.length
        query, said = asked.query.answered(tokens, answer)
        # What the question finds stays; beside it comes what the answer has come to speak of, and what that leads to.
        utility = np.zeros(len(tokens) // BLOCK, dtype=np.float32)
        utility[: len(asked.utility)] = asked.utility
        history = History(tokens, self.lens.spelling, index)
        return Scored(len(tokens), query, self._beside(history, utility, said, query.terms), answer)

    def _beside(
        self, history: History, utility: npt.NDArray[np.float32], said: Query, asked: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float32]:
        """``utility`` for the question with the terms ``asked``, raised by what the model speaks of: ``said``."""
        found = self.lens.find(history, said)
        meant = self._meant(history, said)  # an encoder reads for the question only
        worth = _SAID * min(1.0, found.covered / _SPOKEN)
        about = np.float32(worth) * blend(found.utility, meant, found.covered)
        about = np.maximum(about, look_ahead(history, asked, said, self.lens))
        # However little the question finds, the best of it comes before.
        best = min(np.float32(1), utility.max(initial=0)) or np.float32(1)
        both: npt.NDArray[np.float32] = np.maximum(utility, best * about)
        return both

    def _spread_out(self, tokens: npt.NDArray[np.uint32], query: Query) -> npt.NDArray[np.float32]:
        blocks = len(tokens) // BLOCK
        begins = np.zeros(blocks, dtype=np.bool_)
        begins[np.flatnonzero(self.lens.paragraphs(tokens[: blocks * BLOCK])) // BLOCK] = True
        return spread_out(blocks, _whole_blocks(query.reading), begins)

    def _utility(self, history: History, query: Query) -> tuple[npt.NDArray[np.float32], bool, bool]:
        """Of each full block, and ``whole`` and ``anywhere`` of ``Scored``."""
        # What stands nowhere may be told in other words: for its meaning all is sought that was asked for.
        found = self.lens.find(history, sought(history, query))
        meant = self._meant(history, query)
        before = query.before()
        if before is not None:
            both = self.lens.find(history, query.spelled_out())
            found, meant = narrow(found, meant, self.lens.find(history, before), both)
        led = look_again(history, query.spelled_out(), found.utility, self.lens)
        told = self._told(history.tokens, query, found)
        places = told[:1] or ([] if query.many else answering(found.utility, found.share))
        words = without_rivals(found.utility, found.share) if places else found.utility
        meant, whole = self._read(history.tokens, query.spelled_out(), meant, words)
        # Where a boundary cuts the one place that answers, neither block covers it alone.
        shared = float(found.share.max(initial=0))
        utility = blend(words, meant, shared if places else found.covered)
        # Where the second look leads need not mean what was asked, but it is worth no more than what it started from.
        worth = min(1.0, float(utility[found.utility.argmax()])) if len(utility) else 0.0
        led = np.where(led > found.utility, worth * led, 0)
        utility = np.maximum(utility, led)
        if places:
            # Where it leads, if to one or two places only, is a part of the answer, and read with its text, too.
            hops = apart(led, _CERTAIN * worth, _HOPS)
            utility[hops] = np.maximum(utility[hops], utility[places[0]])
            places += hops
        return outdate(surround(utility, places, shared), told), whole, query.many or bool(places)

    def _told(self, tokens: npt.NDArray[np.uint32], query: Query, found: Found) -> list[int]:
        """The blocks that tell anew what the question asks for as it is now, the last one first; mostly none."""
        told = versions(found.utility, found.share) if query.now else []
        if len(told) < 2:
            return told
        # In another message it is a question that was asked before, or what was answered, as likely as what holds. Not
        # every special token is between messages: a text may have "<filename>" in it.
        closing = tokens[query.end : query.end + 1]
        start = max(0, told[-1] - 1) * BLOCK
        between = tokens[start : query.start] if start < query.start else tokens[query.end + 1 : (told[0] + 2) * BLOCK]
        if len(closing) and (between == closing).any():
            return []
        parts = [tokens[max(0, place - 1) * BLOCK : (place + 2) * BLOCK].tolist() for place in reversed(told)]
        return [] if told_backwards([self.decode(part) for part in parts]) else told

    def _meant(self, history: History, query: Query) -> npt.NDArray[np.float32]:
        """What each full block means of ``query``."""
        if self.meaning is None:
            return np.zeros(history.blocks, dtype=np.float32)
        return self.meaning.score(history, query)

    def _read(
        self,
        tokens: npt.NDArray[np.uint32],
        query: Query,
        meant: npt.NDArray[np.float32],
        words: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.float32], bool]:
        """``meant``, as the encoder sees it, if there is one, and whether nothing failed."""
        if self.encoder is None:
            return meant, True
        try:
            return self.encoder.judge(tokens, query, meant, words), True
        except RuntimeError as error:  # torch's, as when a GPU has no memory left: nobody goes without an answer
            logger.warning("MegaContext: the sentence encoder did not read this request: %s", error)
            return meant, False

    def allocate(
        self, scored: Scored, window: int, *, gists: bool, sealed: Sequence[tuple[int, int]] = ()
    ) -> WorkingContext:
        """The Working Context within ``window`` entries, at least 4 blocks.

        ``gists``, ``sealed``: as of ``allocator.allocate``; where gists leave no room, spans are hidden all the same.
        Raises BudgetError where the pinned parts do not fit.
        """
        raw = pins(
            scored.length,
            scored.query,
            window,
            self.head_tokens,
            self.tail_tokens,
            answer=scored.answer,
            anywhere=scored.anywhere,
            gap_cost=len(self.gap_ids),
        )
        within = partial(
            allocate, scored.length, window, scored.utility, head=raw.head, tail=raw.tail, pinned=raw.between
        )
        if gists:
            try:
                return within(gists=True, sealed=sealed)
            except BudgetError as error:
                logger.warning("MegaContext: unexpanded spans are hidden in this request: %s", error)
        return within(gists=False, gap_cost=len(self.gap_ids))


def _whole_blocks(part: tuple[int, int]) -> tuple[int, int]:
    """The blocks ``[start, stop)`` that are tokens of ``part`` only."""
    start, stop = -(-part[0] // BLOCK), part[1] // BLOCK
    return start, max(start, stop)
