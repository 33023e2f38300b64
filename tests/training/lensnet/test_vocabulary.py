"""Which words a LensNet gets, and in what order they lose their place."""

from collections import Counter

from megacontext_vllm.training.lensnet.vocabulary import choose_words, count_words
from megacontext_vllm.training.lensnet.wordnet import WordNet

COUNTS = Counter({"whatsit": 9, "shoes": 7, "boots": 6, "rosa": 5, "gizmo": 5, "teeth": 2, "rarely": 4})


def choose(wordnet: WordNet, size: int) -> list[str]:
    return choose_words(wordnet, COUNTS, size, pieces=len)


def test_count_words() -> None:
    assert count_words(["The boots, THE x 3rd", "boots"]) == {"the": 2, "boots": 2, "rd": 1}


def test_all_that_there_is(wordnet: WordNet) -> None:
    words = choose(wordnet, 1000)
    assert words == sorted(set(words))
    assert {"boot", "shoe", "footwear", "acrophobic", "afraid", "zyzzyva", "whatsit", "gizmo", "rosa"} <= set(words)
    assert "teeth" in words, "an irregular form in use"
    assert not {"boots", "shoes"} & set(words), "regular forms find their word by rule"
    assert "rarely" not in words, "four times is not often enough for a word that no dictionary has"
    assert not {"paris", "french_capital", "genus_rosa"} & set(words), "names that nobody uses, more than one word"


def test_those_in_use_come_first(wordnet: WordNet) -> None:
    assert set(choose(wordnet, 5)) == {"boot", "shoe", "teeth", "rosa", "afraid"}
    assert set(choose(wordnet, 7)) - set(choose(wordnet, 5)) == {"whatsit", "gizmo"}, "then those of the texts"
    assert set(choose(wordnet, 8)) - set(choose(wordnet, 7)) == {"shoen"}, "then short ones"
