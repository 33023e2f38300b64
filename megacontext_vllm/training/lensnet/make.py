"""From texts and WordNet to a LensNet: choose words, ask the teacher, fit, and try it on questions."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megacontext_vllm.nets.lensnet import LensNet
from megacontext_vllm.nets.sentence_encoder import SentenceEncoder
from megacontext_vllm.training.lensnet.fit import FitRecipe, centre, fit
from megacontext_vllm.training.lensnet.pairs import numbered_pairs
from megacontext_vllm.training.lensnet.trial import FOUND, Trial, loss
from megacontext_vllm.training.lensnet.vocabulary import choose_words, count_words
from megacontext_vllm.training.lensnet.wordnet import LICENCE, read_wordnet
from megacontext_vllm.tree.nodes import BLOCK

Report = Callable[[str, int, int, str], None]
"""Gets the name of the phase, what of it is done, of how much, and a few numbers as text."""


_TEMPERATURES = (0.075, 0.1, 0.125, 0.15, 0.175, 0.2)
_WEIGHTS = (100.0, 1000.0, 10_000.0, 100_000.0)


@dataclass(frozen=True)
class Recipe:
    """words: how many at most. fit: how the vectors are fitted."""

    words: int = 70_000
    fit: FitRecipe = field(default_factory=FitRecipe)


def make_lensnet(
    texts: Iterable[str],
    wordnet: Path,
    teacher: Path,
    trial: Trial,
    recipe: Recipe,
    data: dict[str, Any],
    report: Report,
) -> LensNet:
    """A LensNet; the same for the same arguments on one machine.

    texts    to count words in. wordnet: folder of its database. teacher: folder of a sentence encoder.
    trial    what temperature and weight are chosen by. data: for the card: what texts and teacher these are.
    """
    read = read_wordnet(wordnet)
    counts = count_words(texts)
    encoder = SentenceEncoder(teacher)
    words = choose_words(read, counts, recipe.words, encoder.pieces)
    vectors = _asked(encoder, words, report)
    taught = centre(vectors, np.array([counts[word] for word in words], dtype=np.int64))
    pairs, shares = numbered_pairs(read, {word: row for row, word in enumerate(words)})

    def on_step(step: int, contrast: float, kept: float) -> None:
        report("fitting", step + 1, recipe.fit.steps, f"contrast {contrast:.2f}, teacher {kept:.3f}")

    fitted = fit(taught, pairs, shares, recipe.fit, on_step)
    card = {
        "name": "LensNet",
        "language": "English",
        "recipe": asdict(recipe),
        "data": {**data, "wordnet": LICENCE, "pairs": len(pairs)},
        "licence": "Apache-2.0",
    }
    return calibrated(LensNet(tuple(words), fitted, _TEMPERATURES[0], _WEIGHTS[0], card), trial, report)


def calibrated(net: LensNet, trial: Trial, report: Report) -> LensNet:
    """The net with the temperature and weight that bring the facts of ``trial`` to the top, and what came of it."""
    settings = list(product(_TEMPERATURES, _WEIGHTS))
    tried = []
    for done, (temperature, weight) in enumerate(settings):
        other = replace(net, temperature=temperature, weight=weight)
        ranks = trial.ranks(other)
        tried.append((loss(ranks), other, ranks))
        report("calibrating", done + 1, len(settings), f"{(ranks < FOUND).mean():.2f} of the facts found")
    best, chosen, ranks = min(tried, key=lambda one: one[0])
    metrics = {"blocks": len(trial.tokens) // BLOCK, "questions": len(ranks), "mean_log2_rank": round(best, 3)}
    found = {f"in_{blocks}_blocks": round(float((ranks < blocks).mean()), 3) for blocks in (1, 4, FOUND, 4 * FOUND)}
    return replace(chosen, card={**net.card, "trial": metrics | found})


def _asked(encoder: SentenceEncoder, words: list[str], report: Report) -> npt.NDArray[np.float32]:
    """float32 ``[words, width]``: what the teacher makes of each word alone."""
    vectors: npt.NDArray[np.float32] | None = None
    done = 0
    for chosen, some in encoder.embed(words, batch=256):
        if vectors is None:
            vectors = np.zeros((len(words), some.shape[1]), dtype=np.float32)
        vectors[chosen] = some
        done += len(chosen)
        report("asking the teacher", done, len(words), "")
    assert vectors is not None, "the vocabulary is not empty"
    return vectors
