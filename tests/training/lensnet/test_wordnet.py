"""The WordNet reader on lines of the real files."""

from pathlib import Path

import pytest

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.training.lensnet.wordnet import WordNet, read_wordnet


def test_synsets(wordnet: WordNet) -> None:
    assert len(wordnet.synsets) == 11
    footwear = wordnet.synsets["n03380867"]
    assert footwear.words == ("footwear", "footgear") and footwear.gloss == "covering for feet"
    assert footwear.relations == (("@", "n03122748"), ("~", "n02872752"), ("~", "n04199027"))
    assert wordnet.synsets["n04199027"].relations[1] == ("+", "v00049770"), "a verb may share the offset of a noun"
    assert wordnet.synsets["v00049770"].words == ("shoe",)


def test_adjectives(wordnet: WordNet) -> None:
    assert wordnet.synsets["a00077645"].words == ("afraid",), "without the marker of where it stands"
    assert wordnet.synsets["a00078329"].relations == (("&", "a00077645"),), "satellites are adjectives"


def test_names(wordnet: WordNet) -> None:
    assert {key for key, synset in wordnet.synsets.items() if synset.name} == {"n08860123", "n12620031"}
    assert wordnet.synsets["n08860123"].words == ("paris", "french_capital")


def test_use_and_irregular_forms(wordnet: WordNet) -> None:
    assert wordnet.used == {"boot", "afraid"}
    assert wordnet.irregular[0] == ("teeth", "tooth")


def test_what_is_missing_is_told(tmp_path: Path, wordnet_folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no data.noun: .*apt-get install wordnet-base"):
        read_wordnet(tmp_path)
    for file in wordnet_folder.iterdir():
        if file.name != "verb.exc":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="has no verb.exc"):
        read_wordnet(tmp_path)
