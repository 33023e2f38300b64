"""Which words LensNet knows: those that people use, as far as there is room."""

import re
from collections import Counter
from collections.abc import Callable, Iterable

from megacontext_vllm.nets.lensnet import regular_forms
from megacontext_vllm.training.lensnet.wordnet import WordNet

_WORD = re.compile(r"[a-z]{2,20}")
_OFTEN = 5


def count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each run of Latin letters stands in the texts, in lower case."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(_WORD.findall(text.lower()))
    return counts


def choose_words(wordnet: WordNet, counts: Counter[str], size: int, pieces: Callable[[str], int]) -> list[str]:
    """At most ``size`` words, in alphabetical order.

    First WordNet's words and their irregular forms that are in use (tagged by its makers, or in the texts), then words
    of the texts that stand there at least five times and are no regular form of those, then the rest of WordNet but for
    names, those first that the teacher's tokenizer cuts into few ``pieces``: rare words have many.
    """
    common: set[str] = set()
    names: set[str] = set()
    for synset in wordnet.synsets.values():
        (names if synset.name else common).update(filter(_WORD.fullmatch, synset.words))
    for form, word in wordnet.irregular:
        if word in common and _WORD.fullmatch(form) and form not in regular_forms(word):
            common.add(form)
    lemmas = common | names
    seen = {word for word in lemmas if word in wordnet.used or _stands(word, counts)}
    forms = {form for word in lemmas for form in regular_forms(word)}
    texts = {word for word, count in counts.items() if count >= _OFTEN and word not in lemmas and word not in forms}
    chosen = sorted(seen, key=lambda word: (-counts[word], word))
    chosen += sorted(texts, key=lambda word: (-counts[word], word))
    chosen += sorted(common - seen, key=lambda word: (pieces(word), len(word), word))
    return sorted(chosen[:size])


def _stands(word: str, counts: Counter[str]) -> bool:
    return bool(counts[word]) or any(counts[form] for form in regular_forms(word))
