"""What has to do with what, by WordNet."""

import numpy as np
import pytest

from megacontext_vllm.training.lensnet.pairs import numbered_pairs, related_words
from megacontext_vllm.training.lensnet.wordnet import WordNet

WORDS = ["boot", "covering", "feet", "footgear", "footwear", "paris", "shoe", "shoes", "teeth", "tooth", "zyzzyva"]
ROWS = {word: row for row, word in enumerate(WORDS)}


def test_related_words(wordnet: WordNet) -> None:
    related: dict[tuple[str, str], float] = {}
    for a, b, weight in related_words(wordnet):
        related[a, b] = max(weight, related.get((a, b), 0))
    assert related["footwear", "footgear"] == related["footgear", "footwear"] == 1, "of one meaning"
    assert related["boot", "footwear"] == related["footwear", "boot"] == 1, "a kind of it"
    assert related["boot", "covering"] == 0.5, "two steps up"
    assert ("boot", "shoe") not in related
    assert related["acrophobic", "high"] == 0.3, "a word and its definition"
    assert ("acrophobic", "of") not in related and ("footwear", "took") not in related, "no stop words, no examples"


def test_numbered_pairs(wordnet: WordNet) -> None:
    pairs, shares = numbered_pairs(wordnet, ROWS)
    assert pairs.dtype == np.int64 and pairs.shape == (len(shares), 2) and shares.sum() == pytest.approx(1)
    assert (shares > 0).all() and (pairs[:, 0] != pairs[:, 1]).all() and set(pairs.ravel()) <= set(range(len(WORDS)))
    known = {(WORDS[a], WORDS[b]) for a, b in pairs.tolist()}
    assert ("shoe", "shoes") in known and ("teeth", "tooth") in known, "forms, regular and not"
    assert not any("zyzzyva" in pair for pair in known), "nothing is said of it"


def test_a_word_of_many_pairs_has_each_drawn_less(wordnet: WordNet) -> None:
    pairs, shares = numbered_pairs(wordnet, ROWS)
    share = {(WORDS[a], WORDS[b]): s for (a, b), s in zip(pairs.tolist(), shares.tolist(), strict=True)}
    of_one = share["teeth", "tooth"] / 2.0  # forms weigh twice as much as relations
    assert share["boot", "footwear"] < of_one
