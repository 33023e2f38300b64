"""The encoder lens: a sentence encoder reads what the other lenses found, sentence by sentence.

Retrieve and re-rank (Nogueira & Cho 2019, arXiv:1901.04085; here with one vector a sentence). Nothing is encoded when a
history comes in and nothing is stored with it: a question costs the same number of sentences however long the history
is. A sentence and not a block, since a block's vector is a mean over all that it says (measured: docs/lensnet.md).
"""

from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.plain_text import Decode
from megacontext_vllm.focus.query import Query
from megacontext_vllm.tree.nodes import BLOCK

READ = 128
"""Blocks that are read at most: three quarters of them the best by meaning, the rest by words."""
_BY_MEANING = READ * 3 // 4
_REACH = 16  # tokens of a sentence that are read beyond the block, on either side
_WHOLE = 0.5  # terms that count less than that, beside the first, are not of the question itself


class Encoder(Protocol):
    """Unit vectors of texts; ``nets.sentence_encoder.SentenceEncoder`` is one. Raises RuntimeError where it fails."""

    def question(self, text: str) -> npt.NDArray[np.float32]:
        """float32 ``[width]``."""

    def documents(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """float32 ``[len(texts), width]``, of at least one text."""


class EncoderLens:
    """One per tokenizer and encoder; threads may share it if they may share the encoder."""

    def __init__(self, encoder: Encoder, decode: Decode, ends: npt.NDArray[np.bool_]) -> None:
        """ends: bool [V], whether a token ends a sentence or a line; ids beyond count as the last."""
        self._encoder = encoder
        self._decode = decode
        self._ends = ends

    def judge(
        self,
        tokens: npt.NDArray[np.uint32],
        query: Query,
        meaning: npt.NDArray[np.float32],
        lexical: npt.NDArray[np.float32],
    ) -> npt.NDArray[np.float32]:
        """``meaning`` as a reader of sentences sees it: a third is what it was, two thirds how like a sentence is.

        tokens   uint32 [N], the history. meaning, lexical: float32 [N // 32] in [0, 1], neither is changed.
        returns  float32 [N // 32] in [0, 1], the best block 1.
        """
        question = self._text(query)
        sentences = self._sentences(tokens, query, _most_useful(meaning, lexical))
        if not question or not sentences:
            return meaning
        spans = list(sentences)
        vectors = self._encoder.documents([sentences[span] for span in spans])
        # The last bits depend on what else is in a batch; what is shown must not.
        likeness = np.round(np.maximum(vectors @ self._encoder.question(question), 0), 4)
        best = np.zeros(len(meaning), dtype=np.float32)
        for (start, stop), like in zip(spans, likeness.tolist(), strict=True):
            blocks = slice(start // BLOCK, (stop - 1) // BLOCK + 1)
            best[blocks] = np.maximum(best[blocks], like)
        judged: npt.NDArray[np.float32] = meaning + 2 * best
        judged /= judged.max(initial=np.float32(1e-6))
        return judged

    def _text(self, query: Query) -> str:
        """The question in words."""
        own = query.weights >= _WHOLE * query.weights.max(initial=0)
        return self._decode(query.terms[own].tolist()).strip()

    def _sentences(
        self, tokens: npt.NDArray[np.uint32], query: Query, blocks: npt.NDArray[np.intp]
    ) -> dict[tuple[int, int], str]:
        """Text of the sentences, or what is near of them, that ``blocks`` have a part in; none of the question's."""
        whole = len(tokens) // BLOCK * BLOCK
        history = np.zeros(len(tokens), dtype=np.int8)
        query.blank(history)
        found: dict[tuple[int, int], str] = {}
        for block in blocks.tolist():
            first, last = block * BLOCK, (block + 1) * BLOCK
            low, high = max(0, first - _REACH), min(whole, last + _REACH)
            ended = low + 1 + np.flatnonzero(self._ends.take(tokens[low:high], mode="clip"))
            cuts = [low, *ended[ended < high].tolist(), high]
            for start, stop in pairwise(cuts):
                span = start, stop
                if start >= last or stop <= first or span in found or history[start:stop].any():
                    continue
                text = self._decode(tokens[start:stop].tolist()).strip()
                if any(map(str.isalnum, text)):
                    found[span] = text
        return found


def _most_useful(meaning: npt.NDArray[np.float32], lexical: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Up to ``READ`` blocks that one of the two finds useful, in order."""
    by_meaning, by_words = _best(meaning, READ), _best(lexical, READ)
    chosen = dict.fromkeys(by_meaning[:_BY_MEANING] + by_words[: READ - _BY_MEANING])
    for block in by_meaning[_BY_MEANING:] + by_words[READ - _BY_MEANING :]:  # one of them may have few
        if len(chosen) < READ:
            chosen[block] = None
    return np.sort(np.fromiter(chosen, dtype=np.intp, count=len(chosen)))


def _best(utility: npt.NDArray[np.float32], most: int) -> list[int]:
    """The most useful blocks, the best first, none that is of no use."""
    blocks = np.flatnonzero(utility)
    if len(blocks) > most:
        least = np.partition(utility[blocks], len(blocks) - most)[len(blocks) - most]
        blocks = blocks[utility[blocks] >= least]
    best: list[int] = blocks[np.argsort(-utility[blocks], kind="stable")][:most].tolist()
    return best
