"""How a text is indexed (text_index.py), for the lenses that look things up in it."""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.text_index import BlockIndex, Numbered, SpelledIndex, TextIndex
from megacontext_vllm.focus.words import Words


def index(tokens: npt.NDArray[np.uint32], lens: LexicalLens, words: Words | None = None) -> TextIndex:
    """Of the first tokens of prompts to come, uint32 ``[N ≥ 1]``; no word may go on behind them.

    words  those that LensNet knows; None where it does not look.
    """
    spelled = SpelledIndex(lens.spelling, tokens)
    named, names = lens.named(tokens)
    rows = None if words is None else BlockIndex(words.rows(tokens, spelled.joined), words.number)
    digest = blake2b(np.ascontiguousarray(tokens).data, digest_size=16).digest()
    return TextIndex(tokens, spelled, Numbered.of(named, lens.number + len(names)), names, rows, digest)
