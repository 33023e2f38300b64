"""A WordNet of a few meanings, in the format of the real one (wndb(5WN)), and what the made-up synsets in it are."""

from pathlib import Path

import pytest

from megacontext_vllm.training.lensnet.wordnet import WordNet, read_wordnet

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n  2 Princeton University  \n"
NOUNS = """\
02872752 06 n 01 boot 0 001 @ 03380867 n 0000 | footwear that covers the whole foot and lower leg
03122748 06 n 01 covering 0 001 ~ 03380867 n 0000 | an artifact that covers something else
03380867 06 n 02 footwear 0 footgear 0 003 @ 03122748 n 0000 ~ 02872752 n 0000 ~ 04199027 n 0000 | covering for feet; ""
04199027 06 n 01 shoe 0 002 @ 03380867 n 0000 + 00049770 v 0101 | footwear shaped to fit the foot
05282746 08 n 01 tooth 0 001 @ 03122748 n 0000 | hard bonelike structures in the jaws of vertebrates
08860123 15 n 02 Paris 0 French_capital 0 001 @i 03122748 n 0000 | the capital of France
12620031 20 n 02 Rosa 0 genus_Rosa 0 000 | large genus of shrubs including roses
13333333 06 n 01 zyzzyva 0 000 | a weevil
"""
VERBS = '00049770 29 v 01 shoe 0 001 + 04199027 n 0101 01 + 08 00 | furnish with shoes; "well shoed"\n'
ADJECTIVES = """\
00077645 00 a 01 afraid(p) 0 001 & 00078329 a 0000 | filled with fear; "afraid of snakes"
00078329 00 s 01 acrophobic 0 001 & 00077645 a 0000 | abnormally afraid of high places
"""


@pytest.fixture(scope="session")
def wordnet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wordnet")
    for name, lines in {"noun": NOUNS, "verb": VERBS, "adj": ADJECTIVES, "adv": ""}.items():
        (folder / f"data.{name}").write_text(LICENCE + lines, encoding="latin-1")
        (folder / f"{name}.exc").write_text("", encoding="latin-1")
    (folder / "noun.exc").write_text("teeth tooth\nshoen shoe\nshoes shoe\n", encoding="latin-1")
    (folder / "cntlist.rev").write_text("boot%1:06:00:: 1 20\nafraid%3:00:00:: 1 3\n", encoding="latin-1")
    return folder


@pytest.fixture(scope="session")
def wordnet(wordnet_folder: Path) -> WordNet:
    return read_wordnet(wordnet_folder)
