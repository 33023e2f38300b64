"""Words that have to do with each other, out of WordNet: what one says in a question, another may say in the text."""

import re
from collections.abc import Iterator, Mapping
from itertools import permutations, product

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.stop_words import STOP_WORDS
from megacontext_vllm.nets.lensnet import regular_forms
from megacontext_vllm.training.lensnet.wordnet import WordNet

Pair = tuple[str, str, float]

# Pointer symbols of wninput(5WN): hypernyms and hyponyms, instances, derived and similar words, verb groups,
# participles, pertainyms, entailment and cause.
_RELATED = frozenset(["@", "@i", "~", "+", "&", "$", "<", "\\", "*", ">", "^"])
_KINDS = frozenset(["@", "@i"])
_SAME, _RELATIVE, _REMOTE, _GLOSS, _FORM = 1.0, 1.0, 0.5, 0.3, 2.0
# Words of definitions rather than of what is defined.
_DEFINING = """
    used using use especially usually often made make makes making act something someone somebody one person people etc
    without within small large having relating characterized resembling involving genus family various
"""


def related_words(wordnet: WordNet) -> Iterator[Pair]:
    """(word, word, weight): of one meaning, of related ones, of a word and its definition. Single words only."""
    silent = STOP_WORDS | set(_DEFINING.split())
    synsets = wordnet.synsets
    for synset in synsets.values():
        words = synset.words
        yield from ((a, b, _SAME) for a, b in permutations(words, 2))
        for symbol, key in synset.relations:
            if symbol not in _RELATED or key not in synsets:
                continue
            yield from ((a, b, _RELATIVE) for a, b in product(words, synsets[key].words))
            if symbol in _KINDS:
                above = [synsets[k].words for s, k in synsets[key].relations if s in _KINDS and k in synsets]
                yield from ((a, b, _REMOTE) for others in above for a, b in product(words, others))
        told = set(re.findall(r"[a-z]{3,}", synset.gloss.lower())) - silent
        yield from ((a, b, _GLOSS) for a, b in product(words, sorted(told)))


def numbered_pairs(wordnet: WordNet, rows: Mapping[str, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """int64 ``[pairs, 2]`` rows of ``rows`` and float64 ``[pairs]`` how likely each is to be drawn (they sum to 1).

    A word of many pairs has each of them drawn less often, so that common words do not take all of the training.
    """
    found = [(rows[a], rows[b], weight) for a, b, weight in related_words(wordnet) if a in rows and b in rows]
    found += [(rows[a], rows[b], _FORM) for a, b in wordnet.irregular if a in rows and b in rows]
    found += [(row, rows[form], _FORM) for word, row in rows.items() for form in regular_forms(word) if form in rows]
    table = np.array([(a, b) for a, b, _ in found if a != b], dtype=np.int64)
    weights = np.array([weight for a, b, weight in found if a != b])
    often = np.bincount(table.ravel(), minlength=len(rows)).astype(np.float64)
    weights /= np.sqrt(often[table[:, 0]] * often[table[:, 1]])
    return table, weights / weights.sum()
