"""The lexical lens: which blocks share rare words with the question. No training, works with any model's tokens.

The rarity of BM25 (Robertson & Zaragoza 2009) over LOD1 blocks, made for their 32 tokens: a word counts once a block
(how often it stands in so few tokens says nothing), words of the blocks beside count in part (a fact and its subject
often straddle a boundary), pairs of tokens that stand side by side in the question count as one more, rarer term (rare
words are several tokens, numbers one token per digit), a word counts however it is cut into tokens and, a little less,
in its other forms (respelled.py, word_forms.py), and a block inherits almost the score of its neighbours, since the
answer often stands beside the words of the question (neighbours.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.neighbours import lend, spread
from megacontext_vllm.focus.plain_text import CUT, plain
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.respelled import find_respelled, half_silent, whole_words
from megacontext_vllm.focus.spelling import Spelling, look_up
from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.tree.nodes import BLOCK

_NEIGHBOUR = 0.65  # of a word's worth, where it stands in the block beside
_ENDS = (".", "?", "!", "\n")
_FORM = 0.7  # of a word's worth, where it stands in another form
_PAIR = 2.0  # with 0, a five-digit number is five digits anywhere; 2 finds it, more gains nothing


@dataclass(frozen=True)
class Found:
    """utility  float32 [N // 32] in [0, 1], the best block 1; all 0 if nothing matches.

    covered  in [0, 1]: how much of the question the best block has, rare words for more. A word that stands nowhere
             counts as the rarest. Words of the blocks beside it count half.
    share    float32 [N // 32] in [0, 1]: how much of the question each block has together with the better of the blocks
             beside it: what a boundary cuts in two is whole here.
    """

    utility: npt.NDArray[np.float32]
    covered: float
    share: npt.NDArray[np.float32]


class LexicalLens:
    """Scores blocks against a question. One per tokenizer; immutable, so threads may share it."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        """vocabulary: the decoded text of each token id, e.g. ``" code"``."""
        terms: dict[str, int] = {}
        # One more row than there are tokens: ids beyond the vocabulary (padded heads, new markers) clip to it.
        table = np.full(len(vocabulary) + 1, -1, dtype=np.int32)
        for token, text in enumerate(vocabulary):
            # Parts of characters look all the same, and are told apart by what they are.
            term = f"{CUT}{token}" if CUT in text else text.strip().casefold()
            if CUT in text or (any(map(str.isalnum, term)) and term not in STOP_WORDS):
                table[token] = terms.setdefault(term, len(terms))
        self._table = table
        self.spelling = Spelling(vocabulary)
        """How words are written with these tokens."""
        self.number = int(self._table.max()) + 1
        """Terms of the vocabulary."""
        words = np.where(self._table >= 0, self.spelling.in_one_token, np.uint64(0))
        known, first = np.unique(words, return_index=True)
        self._in_one_token = known[known != 0], np.append(self._table[first[known != 0]], np.int32(-1))
        self._letter = np.array([*(any(map(str.isalpha, text)) for text in vocabulary), False], dtype=np.bool_)
        self._capital = np.array([*(text.lstrip()[:1].isupper() for text in vocabulary), False], dtype=np.bool_)
        self._line = np.array([*("\n" in text for text in vocabulary), False], dtype=np.bool_)
        self._lines = np.array([*("\n\n" in text for text in vocabulary), False], dtype=np.bool_)
        ends = [plain(text).rstrip(" ").endswith(_ENDS) for text in vocabulary]
        self.ending = np.array([*ends, False], dtype=np.bool_)
        """bool [V + 1]: whether a token ends a sentence or a line; ids beyond the vocabulary count as the last."""

    def capitals(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which tokens begin with a capital, bool of the same shape."""
        return self._capital.take(tokens, mode="clip")

    def letters(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which tokens have a letter, bool of the same shape."""
        return self._letter.take(tokens, mode="clip")

    def ends(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Which tokens end a sentence or a line, bool of the same shape."""
        return self.ending.take(tokens, mode="clip")

    def paragraphs(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.bool_]:
        """Behind which tokens a paragraph begins, bool of the same shape: those that end an empty line."""
        line = self._line.take(tokens, mode="clip")
        empty: npt.NDArray[np.bool_] = self._lines.take(tokens, mode="clip")
        empty[1:] |= line[1:] & line[:-1]
        return empty

    def terms(self, tokens: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
        """Which term each token is, int32 of the same shape: -1 for stop words and what has no letter or digit."""
        return self._table.take(tokens, mode="clip")

    def named(
        self, tokens: npt.NDArray[np.uint32], names: npt.NDArray[np.uint64] | None = None
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        """As ``terms``, but names of several tokens, and words that are cut into stop words, are one term each.

        It stands where they begin, and is that of the token which has the whole word, or a number of its own: that of
        the vocabulary's terms and behind them its place among ``names``, ascending, or else behind these. ``Or in``
        would not be there, ``Row an`` be a row, and ``M ira``, at the start of a sentence, not the `` Mira`` of others.

        names    uint64, of another text, so that a name has the same number in both.
        returns  int32 of the shape of ``tokens``, and all the names that are in them, ascending.
        """
        terms = self.terms(tokens)
        begin, hashes = whole_words(self.spelling, tokens, terms, self.capitals(tokens))
        words, which = np.unique(hashes, return_inverse=True)
        before = np.zeros(0, dtype=np.uint64) if names is None else names
        again = look_up(before, words)
        number = self.number + np.where(again >= 0, again, len(before) + np.arange(len(words)))
        known, terms_of = self._in_one_token
        own = terms_of[look_up(known, words)]
        terms[begin] = np.where(own >= 0, own, number)[which]
        return terms, words

    def score(self, history: History, query: Query) -> npt.NDArray[np.float32]:
        """The ``utility`` of ``find``."""
        return self.find(history, query).utility

    def find(self, history: History, query: Query) -> Found:
        """Utility of each full block for the question; hits inside it do not count: it would outshine its answers."""
        blocks = history.blocks
        slots, weights, follows = self._slots(query)
        total = np.zeros(blocks, dtype=np.float32)
        if not len(query.terms) or not blocks:
            return Found(total, 0.0, total)
        # Gather over the vocabulary first, so that the history is gathered once: token -> slot of the question or -1.
        slot_of = np.full(self.number + 1, -1, dtype=np.int16)
        slot_of[slots] = np.arange(len(slots), dtype=np.int16)
        slot_of_token = slot_of[self._table]
        at, hits = history.labelled(slot_of_token, query)
        asked = slot_of_token.take(query.terms, mode="clip")
        other = find_respelled(history, at, hits, query, asked)
        names = half_silent(self.spelling, query.terms, asked)
        named, name = history.words(np.array(sorted(names), dtype=np.uint64), query)
        slot = np.concatenate([hits, other.first, len(weights) + name])
        block = np.concatenate([at, other.at, named]) // BLOCK
        form = np.zeros(len(slot), dtype=np.bool_)
        form[len(at) : len(at) + len(other.at)] = other.form

        whole, singles = 0.0, len(weights)
        weights += [float(query.weights[names[key]]) for key in sorted(names)]
        as_one = np.zeros(blocks, dtype=np.float32)
        with_next = np.zeros(blocks, dtype=np.float32)
        groups = zip(*(_grouped(slot[kind], block[kind], len(weights)) for kind in (~form, form)), strict=True)
        for i, (where, in_form) in enumerate(groups):
            own, idf = _own_score(where, blocks, in_form)
            score = _with_neighbours(own)
            total += weights[i] * score
            with_next += weights[i] * np.maximum(own, np.append(own[1:], np.float32(0)))
            whole += weights[i] * idf
            if i >= singles:  # several tokens side by side, as the pairs below
                as_one += _PAIR * weights[i] * score
        covered = min(1.0, float(total.max()) / whole) if whole else 0.0
        share = (np.maximum(with_next, np.append(np.float32(0), with_next[:-1])) / np.float32(whole or 1))
        total += as_one
        # Pairs of slots are numbered too, through a small square table: the same work as for single terms.
        number_of = np.full((len(slots), len(slots)), -1, dtype=np.int16)
        for number, (i, j) in enumerate(follows):
            number_of[i, j] = number
        together, parts = np.flatnonzero(at[1:] == at[:-1] + 1), np.flatnonzero(other.second >= 0)
        pair = number_of[
            np.concatenate([slot[together], other.first[parts]]),
            np.concatenate([slot[together + 1], other.second[parts]]),
        ]
        known = np.flatnonzero(pair >= 0)
        pair_block = np.concatenate([block[together], other.at[parts] // BLOCK])[known]
        for weight, where in zip(follows.values(), _grouped(pair[known], pair_block, len(follows)), strict=True):
            total += _PAIR * weight * _with_neighbours(_own_score(where, blocks)[0])

        hits_at = np.sort(np.concatenate([at, other.at, named]), kind="stable")  # three runs that ascend
        spread = lend(total, history.tokens, lambda _: hits_at, self.ending)
        best = float(spread.max())
        return Found(spread / np.float32(best) if best > 0 else spread, covered, share)

    def _slots(self, query: Query) -> tuple[npt.NDArray[np.int32], list[float], dict[tuple[int, int], float]]:
        """Distinct terms of the question (int32 [slots]), their weights, and weights of its pairs of slots."""
        terms = self._table.take(query.terms, mode="clip").tolist()
        slot: dict[int, int] = {}
        weights: list[float] = []
        follows: dict[tuple[int, int], float] = {}
        previous = -1
        for term, weight in zip(terms, query.weights.tolist(), strict=True):
            if term >= 0:
                i = slot.setdefault(term, len(weights))
                if i == len(weights):
                    weights.append(weight)
                weights[i] = max(weights[i], weight)
                if previous >= 0:
                    pair = (slot[previous], i)
                    follows[pair] = max(follows.get(pair, 0.0), weight)
            previous = term
        return np.fromiter(slot, dtype=np.int32, count=len(slot)), weights, follows


def _grouped(label: npt.NDArray[np.int16], block: npt.NDArray[np.intp], labels: int) -> list[npt.NDArray[np.intp]]:
    """``block`` (int [hits]) split by ``label`` (int16 [hits], each in [0, labels)) -> one array per label."""
    order = np.argsort(label, kind="stable")
    bounds = np.cumsum(np.bincount(label, minlength=labels))
    return np.split(block[order], bounds[:-1]) if labels else []


def _own_score(
    block: npt.NDArray[np.intp], blocks: int, form: npt.NDArray[np.intp] | None = None
) -> tuple[npt.NDArray[np.float32], float]:
    """What one term is worth where it stands, float32 [blocks], which is its idf, and in another form a part of it.

    block, form: int [hits], where it stands, and where another form of it does.
    """
    score = np.zeros(blocks, dtype=np.float32)
    if form is not None:
        score[form] = _FORM
    score[block] = 1
    containing = int(np.count_nonzero(score))
    idf = float(np.log(1 + (blocks - containing + 0.5) / (containing + 0.5)))
    if containing:
        score *= np.float32(idf)
    return score, idf


def _with_neighbours(score: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    beside = np.float32(_NEIGHBOUR) * score
    return spread(score, beside, beside)
