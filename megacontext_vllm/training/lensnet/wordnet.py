"""Reads the WordNet database (Fellbaum 1998), as Debian's ``wordnet-base`` has it in ``/usr/share/wordnet``.

The format is that of wndb(5WN). WordNet's licence allows any use with its copyright notice; what is made of it here is
vectors of words, and the notice goes with them.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from megacontext_vllm.errors import ConfigError

FILES = {"n": "data.noun", "v": "data.verb", "a": "data.adj", "r": "data.adv"}
COUNTS = "cntlist.rev"
IRREGULAR = ("noun.exc", "verb.exc", "adj.exc", "adv.exc")
LICENCE = "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved. (WordNet licence: any use, no fee)"
_ANIMAL, _PLANT = 5, 20  # lexicographer files, lexnames(5WN)
_MARKER = re.compile(r"\(\w+\)$")  # of adjectives: "afraid(p)"


@dataclass(frozen=True)
class Synset:
    """One meaning. ``words``: in lower case, ``_`` for a space. ``relations``: (pointer symbol, key of a synset).

    gloss  its definition, without the examples.
    name   of one person or place, or the scientific name of a genus, family and so on.
    """

    words: tuple[str, ...]
    relations: tuple[tuple[str, str], ...]
    gloss: str
    name: bool


@dataclass(frozen=True)
class WordNet:
    """synsets    by key (part of speech and offset).

    used       words in the texts that WordNet's makers tagged.
    irregular  (form, word): "teeth", "tooth".
    """

    synsets: dict[str, Synset]
    used: frozenset[str]
    irregular: tuple[tuple[str, str], ...] = ()


def read_wordnet(folder: Path) -> WordNet:
    """Raises ConfigError where the files are not."""
    missing = [name for name in (*FILES.values(), COUNTS, *IRREGULAR) if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"{folder} has no {missing[0]}: give the folder of the WordNet 3.0 database (--wordnet). Debian and Ubuntu "
            "have it: apt-get install wordnet-base puts it into /usr/share/wordnet."
        )
    synsets: dict[str, Synset] = {}
    for name in FILES.values():
        with (folder / name).open(encoding="latin-1") as file:
            synsets.update(_synset(line) for line in file if not line.startswith(" "))
    with (folder / COUNTS).open(encoding="latin-1") as file:
        used = frozenset(line.split("%", 1)[0] for line in file)
    irregular: list[tuple[str, str]] = []
    for name in IRREGULAR:
        with (folder / name).open(encoding="latin-1") as file:
            irregular.extend((form, word) for form, *words in map(str.split, file) for word in words)
    return WordNet(synsets, used, tuple(irregular))


def _synset(line: str) -> tuple[str, Synset]:
    data, _, gloss = line.rstrip().partition(" | ")
    fields = data.split()
    offset, lexicographer, kind, count = fields[0], int(fields[1]), fields[2], int(fields[3], 16)
    written = [_MARKER.sub("", fields[4 + 2 * i]) for i in range(count)]
    at = 4 + 2 * count
    pointers = [fields[at + 1 + 4 * i : at + 5 + 4 * i] for i in range(int(fields[at]))]
    relations = tuple((symbol, _key(part, target)) for symbol, target, part, _ in pointers)
    scientific = lexicographer in (_ANIMAL, _PLANT) and written[0][:1].isupper()
    instance = any(symbol == "@i" for symbol, _ in relations)
    words = tuple(word.lower() for word in written)
    return _key(kind, offset), Synset(words, relations, gloss.split('; "', 1)[0], scientific or instance)


def _key(part_of_speech: str, offset: str) -> str:
    return ("a" if part_of_speech == "s" else part_of_speech) + offset
