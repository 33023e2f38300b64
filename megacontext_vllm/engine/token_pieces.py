"""Tokenise a long text in overlapping pieces, side by side, to the very tokens that the whole text gives.

One call for a long text holds one core, and costs more per token the longer the text is; for many texts, a tokenizer
takes all cores. So the text is cut. What a tokenizer makes of a place depends on the text a little around it, so pieces
overlap: where both have the same tokens for some way before and behind a cut, from the same character on, neither the
end of the one nor the beginning of the other was felt there, and the tokens of the one up to the cut and of the other
from there on are those of the whole. Where they differ, the two are tokenised again as one piece, at worst the whole.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]

PIECE = 65_536  # characters; smaller ones are no faster, and the overlaps take 3 % of this
OVERLAP = 1_024  # characters on either side of a cut that both pieces see
AGREE = 64  # tokens on either side of a cut that must be the same in both
MARK_EVERY = 4_096  # characters
TOGETHER = 16  # pieces that are tokenised in one call: an encoding takes about 1 kB per token until it is read
ROUNDS = 2  # of tokenising in pieces; what is still not certain then is left to the whole text


class Encoding(Protocol):
    """What is needed of a ``tokenizers.Encoding``. A list of all its offsets would take longer than all else here."""

    @property
    def ids(self) -> list[int]: ...

    def token_to_chars(self, token_index: int, /) -> tuple[int, int] | None: ...

    def token_to_word(self, token_index: int, /) -> int | None: ...


@dataclass(frozen=True)
class Encoder:
    """``encode``: texts -> an encoding of each, without special tokens that are not in the text.

    ``at_words``: join only where a word begins, as the tokenizer splits them. Byte pair encoding can do without: there,
    tokens are right if every two neighbours are right, and neighbours in a join are neighbours in one of the pieces. A
    unigram model weighs whole words, and of two equal ways takes the one that rounding favours, however long the word.
    """

    encode: Callable[[list[str]], Sequence[Encoding]]
    at_words: bool


@dataclass(frozen=True)
class Tokens:
    """The tokens of a text, and for some of them where they start.

    ``ids``: int32 ``[N]``. ``marks``: int64 ``[M, 2]``, ascending: a character of the text, and the token that starts
    with it; one in about ``MARK_EVERY`` characters, at which a text that begins alike can be joined.
    """

    ids: Ids
    marks: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Edge:
    """What a piece has around a cut: int32 ``[2 * AGREE]`` ids, and the character where the second half starts."""

    character: int
    ids: Ids

    def agrees(self, other: "_Edge | None") -> bool:
        return other is not None and self.character == other.character and np.array_equal(self.ids, other.ids)


@dataclass(frozen=True)
class _Piece:
    """The tokens between two cuts; tokens of ``marks`` are counted from the first of them. No edge: not certain."""

    tokens: Tokens
    left: _Edge | None
    right: _Edge | None


def tokenise(
    text: str, encoder: Encoder, known: Tokens | None = None, common: int = 0, *, piece: int = PIECE
) -> Tokens:
    """The tokens of ``text``. ``known``: those of a text that begins with the same ``common`` characters."""
    assert piece >= 2 * OVERLAP
    pieces: dict[tuple[int, int], _Piece] = {}
    cuts = [0]
    head = None if known is None else _head(known, common - OVERLAP)
    if head is not None:
        assert head.right is not None
        cuts.append(head.right.character)
        pieces[0, cuts[-1]] = head
    # The last piece may be half as long or half as long again.
    cuts += [*range(cuts[-1] + piece, len(text) - piece // 2, piece), len(text)]
    rounds = 0
    while True:
        spans = list(pairwise(cuts))
        missing = [span for span in spans if span not in pieces]
        for i in range(0, len(missing), TOGETHER):
            pieces |= _encoded(text, missing[i : i + TOGETHER], encoder)
        uncertain = {b[0] for a, b in pairwise(spans) if not _agree(pieces[a], pieces[b])}
        if not uncertain:
            return _joined([pieces[span] for span in spans])
        if head is not None and cuts[1] in uncertain:
            return tokenise(text, encoder, piece=piece)
        rounds += 1
        cuts = [0, len(text)] if rounds == ROUNDS else [cut for cut in cuts if cut not in uncertain]


def _head(known: Tokens, before: int) -> _Piece | None:
    """The tokens of ``known`` up to its last mark at or before the character ``before``."""
    count = int(np.searchsorted(known.marks[:, 0], before, side="right"))
    if count == 0:
        return None
    character, token = known.marks[count - 1].tolist()
    edge = _Edge(character, known.ids[token - AGREE : token + AGREE])
    return _Piece(Tokens(known.ids[:token], known.marks[:count]), None, edge)


def _encoded(text: str, spans: list[tuple[int, int]], encoder: Encoder) -> dict[tuple[int, int], _Piece]:
    reach = [(max(0, left - OVERLAP), min(len(text), right + OVERLAP)) for left, right in spans]
    encodings = encoder.encode([text[begin:end] for begin, end in reach])
    return {
        (left, right): _piece(_Located(encoding, begin, encoder.at_words), left, right, last=right == len(text))
        for encoding, (begin, _), (left, right) in zip(encodings, reach, spans)
    }


class _Located:
    """The encoding of a part of the text, which begins at the text's character ``begin``."""

    def __init__(self, encoding: Encoding, begin: int, at_words: bool) -> None:
        self.ids: Ids = np.array(encoding.ids, dtype=np.int32)
        self._encoding = encoding
        self._begin = begin
        self._at_words = at_words

    def start(self, token: int) -> int:
        characters = self._encoding.token_to_chars(token)
        assert characters is not None
        return self._begin + characters[0]

    def joint(self, character: int) -> int | None:
        """The first token from ``character`` on at which it can be joined, if AGREE tokens are on either side of it."""
        first = bisect_left(range(len(self.ids)), character, key=self.start)
        # Words of more than AGREE tokens are not searched for their end.
        for token in range(max(first, AGREE), min(first + AGREE, len(self.ids) - AGREE + 1)):
            if not self._at_words or self._begins_a_word(token):
                return token
        return None

    def _begins_a_word(self, token: int) -> bool:
        return self._encoding.token_to_word(token) != self._encoding.token_to_word(token - 1)

    def edge(self, token: int | None) -> _Edge | None:
        return None if token is None else _Edge(self.start(token), self.ids[token - AGREE : token + AGREE].copy())


def _piece(part: _Located, left: int, right: int, last: bool) -> _Piece:
    """What ``part`` has between the cuts at the characters ``left`` and ``right``, or up to the end of the text."""
    first, end = part.joint(left), part.joint(right)
    begin = 0 if left == 0 or first is None else first
    behind = len(part.ids) if last or end is None else end
    marks: list[int] = []
    for character in range((left // MARK_EVERY + 1) * MARK_EVERY, right, MARK_EVERY):
        token = part.joint(character)
        # A token may be longer than the way to the next mark, which is then the same.
        if token is not None and (marks[-1] if marks else begin) < token < behind:
            marks.append(token)
    located = np.array([(part.start(token), token - begin) for token in marks], dtype=np.int64).reshape(-1, 2)
    return _Piece(Tokens(part.ids[begin:behind].copy(), located), part.edge(first), part.edge(end))


def _agree(before: _Piece, behind: _Piece) -> bool:
    return before.right is not None and before.right.agrees(behind.left)


def _joined(pieces: list[_Piece]) -> Tokens:
    counts = np.cumsum([0, *(len(piece.tokens.ids) for piece in pieces)])
    return Tokens(
        np.concatenate([piece.tokens.ids for piece in pieces]),
        np.concatenate([np.add(piece.tokens.marks, (0, count)) for piece, count in zip(pieces, counts)]),
    )
