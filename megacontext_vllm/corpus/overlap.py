"""Held-out text that was not seen in training: no passage of 32 words is in two splits, no document is there twice.

Boilerplate, quotations and two editions of a text are in several documents, so splitting by document is not enough.
What is shared stays in the split that needs it most, test before validation before train, and is cut from the other.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.corpus.document import Document, Split

PASSAGE = 32  # words or runs of punctuation, some 40 tokens: longer than phrases that come about by chance
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no power of it vanishes modulo 2**64
_RANK: dict[Split, int] = {"test": 0, "validation": 1, "train": 2}
_WORD = re.compile(r"\w+|[^\w\s]+")

Hashes = NDArray[np.uint64]


class Words:
    """Words and runs of punctuation as 64-bit numbers that depend on nothing else; capital letters do not matter."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def numbers(self, text: str) -> Hashes:
        """uint64 [words]."""
        known = self._known
        words = _WORD.findall(text.lower())
        for word in words:
            if word not in known:
                known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest())
        return np.fromiter((known[word] for word in words), np.uint64, len(words))


def passages(numbers: Hashes) -> Hashes:
    """A hash of each passage of 32 words in a row: uint64 [words - 31], or [0] of a shorter text."""
    hashes, length, multiplier = numbers, 1, _MULTIPLIER
    while length < PASSAGE:
        if len(hashes) <= length:
            return np.empty(0, np.uint64)
        hashes = hashes[:-length] * np.uint64(multiplier) + hashes[length:]
        length, multiplier = 2 * length, multiplier * multiplier % 2**64
    return hashes


def without_duplicates(documents: Sequence[Document], words: Words) -> list[Document]:
    """Of documents with the same words only one: the one in test, else validation, else train; there the first."""
    seen: set[bytes] = set()
    kept = []
    for document in sorted(documents, key=lambda document: (_RANK[document.split], document.id)):
        print_of_it = hashlib.sha256(words.numbers(document.text).tobytes()).digest()
        if print_of_it not in seen:
            kept.append(document)
            seen.add(print_of_it)
    return sorted(kept, key=lambda document: document.id)


def keep_apart(documents: Sequence[Document], words: Words) -> list[Document]:
    """``documents`` in their order, without the parts of validation and train that a split before them has too."""
    made = list(documents)
    known = [passages(words.numbers(document.text)) for document in made]
    for split in ("validation", "train"):
        above = [hashes for document, hashes in zip(made, known) if _RANK[document.split] < _RANK[split]]
        taken = np.unique(np.concatenate([*above, np.empty(0, np.uint64)]))
        open_ = [place for place, document in enumerate(made) if document.split == split]
        while open_:  # cutting brings together what was apart, which may be a shared passage again
            cut = []
            for place in open_:
                shared = _is_in(known[place], taken)
                if shared.any():
                    made[place] = replace(made[place], text=_without(made[place], shared))
                    known[place] = passages(words.numbers(made[place].text))
                    cut.append(place)
            open_ = cut
    return made


def count_shared(documents: Sequence[Document]) -> int:
    """How many passages of validation and train are in a split before them too."""
    words = Words()
    count = 0
    above: list[Hashes] = [np.empty(0, np.uint64)]
    for split in _RANK:
        taken = np.unique(np.concatenate(above))
        for document in documents:
            if document.split == split:
                mine = passages(words.numbers(document.text))
                count += int(_is_in(mine, taken).sum())
                if split != "train":  # the last: nothing is compared with it
                    above.append(mine)
    return count


def _is_in(hashes: Hashes, taken: Hashes) -> NDArray[np.bool_]:
    """bool [hashes]; ``taken`` is sorted. Looking up beats np.isin, which sorts both."""
    if not len(taken):
        return np.zeros(len(hashes), np.bool_)
    places = np.searchsorted(taken, hashes)
    return taken[np.minimum(places, len(taken) - 1)] == hashes


def _without(document: Document, shared: NDArray[np.bool_]) -> str:
    """The text without the lines (of code: the paragraphs) that have a word of a shared passage in them.

    ``shared``: bool [words - 31], whether the passage that begins at this word is shared.
    """
    cover = np.zeros(len(shared) + PASSAGE, np.int64)
    np.add.at(cover, np.flatnonzero(shared), 1)
    np.add.at(cover, np.flatnonzero(shared) + PASSAGE, -1)
    covered = np.cumsum(cover) > 0
    end = "\n\n" if document.kind == "code" else "\n"
    kept = []
    at = 0
    for part in document.text.split(end):
        length = len(_WORD.findall(part.lower()))
        if not covered[at : at + length].any():
            kept.append(part)
        at += length
    return re.sub(r"\n{3,}", "\n\n", end.join(kept)).strip("\n")
