"""LensNet: what words mean, so that a question finds what answers it in other words.

A table of word vectors, distilled from a sentence encoder, and the two numbers of a translation model of retrieval
(Berger & Lafferty 1999): how probable it is that a text has the word w where a question has the word q. It knows words
and no tokens, so it fits any model, and it keeps nothing of a history. numpy alone: the lens runs where no torch is.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from megacontext_vllm.errors import ConfigError

NAME = "lensnet.safetensors"
TOTALS = "totals.safetensors"
"""What is worked out of the weights once, because a server would do it for every new word that is asked for."""
SHIPPED = Path(__file__).with_name("weights") / "lensnet"
TRAIN = "make one with 'megacontext train lensnet'"
_FORMAT = 1
_LEVELS = 127  # int8, symmetric
_AT_ONCE = 64  # words whose likeness to all others is held at a time


@dataclass(frozen=True, eq=False)
class LensNet:
    """Immutable but for what it remembers of its own arithmetic, so threads may share it.

    words        in lower case, one a row.
    vectors      float32 ``[words, width]``, of length 1.
    temperature  of the softmax that makes probabilities of likeness; the lower, the more literal.
    weight       how much a probability counts beside how common the word is in the history.
    card         what it was made of and how, for people.
    """

    words: tuple[str, ...]
    vectors: npt.NDArray[np.float32]
    temperature: float
    weight: float
    card: dict[str, Any] = field(default_factory=dict)
    _totals: dict[int, np.float32] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def rows(self) -> dict[str, int]:
        """The row of each word, and of regular forms that are no word themselves: "croissants" is "croissant"."""
        rows = {word: row for row, word in enumerate(self.words)}
        for row, word in enumerate(self.words):
            for form in regular_forms(word):
                rows.setdefault(form, row)
        return rows

    def probabilities(self, asked: Sequence[int], words: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """float32 ``[len(asked), len(words)]``: of each of ``words``, where a question has each word of ``asked``.

        Both are rows; over all rows there are, the probabilities beside one word sum to 1.
        """
        odds = self._odds(self.vectors[list(asked)] @ self.vectors[words].T)
        probabilities: npt.NDArray[np.float32] = odds / np.array([self._total(row) for row in asked])[:, None]
        return probabilities

    def _odds(self, likeness: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        odds: npt.NDArray[np.float32] = np.exp((likeness - np.float32(1)) / np.float32(self.temperature))
        return odds

    def _total(self, row: int) -> np.float32:
        # It takes all words there are, many more than a history has: 3 ms. One at a time, so that what comes out does
        # not depend, in the last digit, on what else was asked.
        total = self._totals.get(row)
        if total is None:
            total = self._totals[row] = self._odds(self.vectors @ self.vectors[row]).sum()
        return total

    def all_totals(self) -> npt.NDArray[np.float32]:
        """float32 ``[words]``: the divisor of the softmax of each word. Half a minute of one core for 70,000 words."""
        total = np.empty(len(self.words), dtype=np.float32)
        for start in range(0, len(total), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            total[some] = self._odds(self.vectors @ self.vectors[some].T).sum(axis=0)
        return total

    @cached_property
    def fingerprint(self) -> bytes:
        """16 bytes, of all that changes a score."""
        digest = blake2b(digest_size=16)
        digest.update("\n".join(self.words).encode())
        digest.update(_quantised(self.vectors).tobytes())
        digest.update(json.dumps([self.temperature, self.weight]).encode())
        return digest.digest()


def regular_forms(word: str) -> Iterator[str]:
    """Plurals and verb forms as English makes them by rule, for all the rule knows; the word itself is not among them.

    No claim that a form exists: "informations" costs nothing.
    """
    stem = word[:-1]
    if word.endswith("y") and stem[-1:] not in "aeiou":
        yield from (stem + "ies", stem + "ied", word + "ing")
    elif word.endswith("e"):
        yield from (word + "s", word + "d", (word if stem[-1:] in ("e", "o", "y") else stem) + "ing")
    else:
        yield word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")
        yield from (word + "ed", word + "ing")
        if len(word) > 2 and word[-1] not in "aeiouwxy" and word[-2] in "aeiou" and word[-3] not in "aeiou":
            yield from (word + word[-1] + "ed", word + word[-1] + "ing")


def save(net: LensNet, folder: Path) -> None:
    """Write weights (int8), card and totals into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    words = np.frombuffer("\n".join(net.words).encode(), dtype=np.uint8)
    save_file({"vectors": _quantised(net.vectors), "words": words}, folder / NAME)
    numbers = {"temperature": net.temperature, "weight": net.weight, "fingerprint": net.fingerprint.hex()}
    card = {"format": _FORMAT, **numbers, **net.card}
    (folder / NAME).with_suffix(".json").write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n")
    save_totals(folder)


def save_totals(folder: Path) -> None:
    """Write the totals of the LensNet in ``folder`` beside it; of what is there, which int8 has rounded."""
    (folder / TOTALS).unlink(missing_ok=True)  # they may be another net's
    net = load(folder)
    totals = net.all_totals()
    belongs_to = {"lensnet": net.fingerprint.hex(), "digest": _digest(totals)}
    save_file({"totals": totals}, folder / TOTALS, metadata=belongs_to)


def load(folder: Path = SHIPPED) -> LensNet:
    """The LensNet in a folder; by default the one that comes with this package.

    Raises ConfigError, saying what to do, for anything but a whole one.
    """
    weights = folder / NAME
    if not weights.is_file():
        raise ConfigError(f"{weights} does not exist: give a folder that holds {NAME} and its card, or {TRAIN}.")
    try:
        card = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        tensors = load_file(weights)
        words = tuple(tensors["words"].tobytes().decode().split("\n"))
        quantised = tensors["vectors"]
        if card["format"] != _FORMAT:
            raise ConfigError(f"{weights} is of format {card['format']}, this version reads {_FORMAT}: {TRAIN}.")
        if quantised.dtype != np.int8 or quantised.ndim != 2 or len(quantised) != len(words):
            raise ValueError(f"vectors are {quantised.dtype} {list(quantised.shape)} for {len(words)} words")
        numbers = {key: float(card.pop(key)) for key in ("temperature", "weight")}
        fingerprint = card.pop("fingerprint")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ConfigError(f"{weights} and its card are not a whole LensNet ({error}): copy both again.") from error
    vectors = quantised.astype(np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1)
    net = LensNet(words, vectors, **numbers, card=card)
    if net.fingerprint.hex() != fingerprint:
        raise ConfigError(f"{weights} and its card do not belong together, or one is damaged: copy both again.")
    net._totals.update(enumerate(_load_totals(folder / TOTALS, fingerprint)))
    return net


def _load_totals(path: Path, fingerprint: str) -> npt.NDArray[np.float32]:
    """Those of the net with this fingerprint; none, where there is no file: a net does without, only slower."""
    if not path.is_file():
        return np.zeros(0, dtype=np.float32)
    try:
        with safe_open(path, framework="numpy") as file:
            found, belongs_to = file.get_tensor("totals"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): copy it again, or delete it.") from error
    if belongs_to != {"lensnet": fingerprint, "digest": _digest(found)}:
        raise ConfigError(f"{path} is damaged, or another LensNet's: copy it again, or delete it.")
    totals: npt.NDArray[np.float32] = found
    return totals


def _digest(totals: npt.NDArray[np.float32]) -> str:
    return blake2b(np.ascontiguousarray(totals).data, digest_size=16).hexdigest()


def _quantised(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """int8 of the same shape; a vector's length is not kept, its direction is."""
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    rounded: npt.NDArray[np.int8] = np.rint(vectors / np.maximum(largest, 1e-12) * _LEVELS).astype(np.int8)
    return rounded
