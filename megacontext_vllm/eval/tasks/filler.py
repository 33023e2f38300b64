"""The real text that facts are hidden in: one long stream of tokens, used as a circle."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.focus.vocabulary import surface_strings
from megacontext_vllm.tree.nodes import BLOCK

if TYPE_CHECKING:
    from megacontext_vllm.corpus import Split

_CLOSERS = "\"'”’)]"
_OPENERS = "\"'“‘(["
_SPACES = ("Ġ", "▁", " ")  # how vocabularies write that a token begins with a space
_SHORTENED = """
    mr mrs ms messrs dr st no nos vol vols art sec pp gen gov sen rep hon jr capt lt col maj sgt rev prof vs etc fig eq
    ed cf al jan feb mar apr aug sept oct nov dec
"""


@dataclass(frozen=True, eq=False)
class Filler:
    """Offsets go round: offset ``N + i`` is offset ``i``, so that a history may start anywhere.

    tokens     uint32 ``[N]``, N a multiple of 32.
    sentences  int64 ``[S]``, sorted: where a sentence can be put in front of what follows, leaving whole words and
               sentences on both sides.
    documents  int64 ``[D]``, sorted: where each document starts.
    text       the stream as text, casefolded; not always exact where one character is several tokens.
    """

    tokens: NDArray[np.uint32]
    sentences: NDArray[np.int64]
    documents: NDArray[np.int64]
    text: str = field(repr=False)

    @classmethod
    def from_tokens(cls, tokens: NDArray[np.uint32], tokenizer: Any, starts: ArrayLike = (0,)) -> "Filler":
        """``tokens``: uint32 ``[N]``; ``starts``: where documents start; ``tokenizer``: a fast one of transformers."""
        tokens = tokens[: len(tokens) // BLOCK * BLOCK]
        documents = np.asarray(starts, dtype=np.int64)
        surfaces = surface_strings(tokenizer)
        sentences = _sentence_starts(tokens, surfaces, tokenizer)
        if not len(sentences):
            raise EvaluationError("no sentences are recognised in the text: an evaluation needs prose to hide facts in")
        table = np.array(surfaces, dtype=object)
        return cls(tokens, sentences, documents[documents < len(tokens)], "".join(table[tokens]).casefold())

    @classmethod
    def from_corpus(cls, tokenizer: Any, tokenizer_file: Path, split: "Split" = "test") -> "Filler":
        """The prose of a split of the corpus; ``tokenizer_file``: its tokenizer.json. Raises CorpusError."""
        from megacontext_vllm.corpus import PROSE, token_stream

        stream = token_stream(split, tokenizer_file, kinds=PROSE)
        return cls.from_tokens(stream.tokens, tokenizer, stream.starts)

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Tokens ``[start, stop)``, uint32; at most once round."""
        assert 0 <= start <= stop <= start + len(self), (start, stop)
        first, length = start % len(self), stop - start
        head = self.tokens[first : first + length]
        return np.concatenate([head, self.tokens[: length - len(head)]])

    def sentences_between(self, start: int, stop: int) -> NDArray[np.int64]:
        """Sentence starts in ``[start, stop)``, int64, sorted."""
        parts = []
        for turn in range(start // len(self), max(start, stop - 1) // len(self) + 1):
            origin = turn * len(self)
            first, last = np.searchsorted(self.sentences, [start - origin, stop - origin])
            parts.append(self.sentences[first:last] + origin)
        return np.concatenate(parts)

    def next_aligned(self, offset: int, residue: int) -> int:
        """The first sentence start from ``offset`` on that is congruent to ``residue`` modulo 32."""
        starts = self._by_residue[residue % BLOCK]
        if not len(starts):
            raise EvaluationError(f"{len(self):,} tokens of text are too few for an evaluation: use a longer text")
        turn, at = divmod(offset, len(self))
        i = int(np.searchsorted(starts, at))
        return turn * len(self) + (int(starts[i]) if i < len(starts) else len(self) + int(starts[0]))

    @property
    def beginnings(self) -> NDArray[np.int64]:
        """Where a history may begin, int64: sentence starts at the start of a block."""
        return self._by_residue[0]

    @cached_property
    def _by_residue(self) -> list[NDArray[np.int64]]:
        return [self.sentences[self.sentences % BLOCK == residue] for residue in range(BLOCK)]

    def mentions(self, text: str) -> bool:
        """Whether the text stands anywhere in the stream, in whatever case, as a word or within one."""
        return text.casefold() in self.text


def _sentence_starts(tokens: NDArray[np.uint32], surfaces: list[str], tokenizer: Any) -> NDArray[np.int64]:
    """Offsets of tokens before which a sentence has ended and another begins, int64, sorted."""
    # A token of SentencePiece decodes without the space that it begins with, hence the look at its own spelling.
    shortened = frozenset(_SHORTENED.split())
    spellings = tokenizer.convert_ids_to_tokens(list(range(len(surfaces))))
    opens, ends, stands_alone, shortens = (np.zeros(len(surfaces), dtype=bool) for _ in range(4))
    for token, (surface, spelling) in enumerate(zip(surfaces, spellings)):
        word = surface.strip()
        spaced = surface.startswith(" ") or (spelling or "").startswith(_SPACES)
        bare = word.lstrip(_OPENERS)
        opens[token] = surface.startswith("\n") or (spaced and (bare[:1].isupper() if bare else bool(word)))
        ends[token] = word.rstrip(_CLOSERS).endswith((".", "!", "?")) and surface.rstrip() == surface
        stands_alone[token] = word == "."
        shortens[token] = word.casefold() in shortened or (len(word) == 1 and word.isupper())
    is_start = np.zeros(len(tokens), dtype=bool)
    is_start[2:] = opens[tokens[2:]] & ends[tokens[1:-1]] & ~(stands_alone[tokens[1:-1]] & shortens[tokens[:-2]])
    return np.flatnonzero(is_start).astype(np.int64)
