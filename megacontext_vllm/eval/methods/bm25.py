"""BM25 over chunks: the baseline that long-context methods are most often behind (quality.md)."""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.chunked import Chunked
from megacontext_vllm.eval.methods.packages import need


@dataclass(frozen=True, eq=False)
class _Index:
    """``scorer``: a filled ``bm25s.BM25``, None for a history without words; ``chunks``: how many it has."""

    scorer: Any
    chunks: int


class _BM25(Chunked):
    """Lucene's variant and parameters (k1 = 1.5, b = 0.75) as bm25s has them (Lù 2024, arXiv:2407.03618).

    Lower case, words of two characters and more, no stemming; the longer English list of stop words, since questions
    are full of "what", "who" and "did", which are rare enough in prose to outrank what is asked for.
    """

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        self._library = need("bm25s", self.name)
        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG on import

    def index(self, history: NDArray[np.uint32]) -> _Index:
        words = self._words(self.texts(history))
        if not any(words):
            return _Index(None, len(words))
        scorer = self._library.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
        scorer.index(words, show_progress=False, create_empty_token=False)
        return _Index(scorer, len(words))

    def score(self, view: View) -> NDArray[np.float32]:
        index: _Index = view.index
        (words,) = self._words([view.prompt.question])
        known = [] if index.scorer is None else index.scorer.get_tokens_ids(words)
        if not known:
            return np.zeros(index.chunks, dtype=np.float32)
        scores: NDArray[np.float32] = index.scorer.get_scores_from_ids(known)
        return scores

    def _words(self, texts: list[str]) -> list[list[str]]:
        words: list[list[str]] = self._library.tokenize(
            texts, lower=True, stopwords="english_plus", stemmer=None, return_ids=False, show_progress=False
        )
        return words


class BM25Blocks(_BM25):
    name = "bm25_32"
    summary = "BM25 over chunks of 32 tokens, the best in document order"
    size = 32


class BM25Passages(_BM25):
    name = "bm25_256"
    summary = "BM25 over chunks of 256 tokens, the best in document order"
    size = 256
