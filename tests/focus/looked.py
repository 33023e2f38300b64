"""What is found in a text, whether it is indexed or not, and however far: always the very same."""

from collections.abc import Callable
from dataclasses import astuple, is_dataclass
from typing import TypeVar

import numpy as np

from megacontext_vllm.focus.history import History
from megacontext_vllm.focus.indexing import index
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.words import Words
from megacontext_vllm.tree.nodes import BLOCK

Result = TypeVar("Result")
LONG = 20_000


def looked(
    find: Callable[[History], Result], tokens: np.ndarray, lens: LexicalLens, words: Words | None = None
) -> Result:
    """What ``find`` finds in ``tokens`` without an index; with one of all, a half or a little of it, it is the same."""
    found = find(History(tokens, lens.spelling))
    whole = len(tokens) // BLOCK * BLOCK
    for length in (whole // 2,) if whole > LONG else (whole, whole // 2 + 5, 40):
        cut = lens.spelling.boundary(tokens, min(length, whole))
        if cut:
            indexed = find(History(tokens, lens.spelling, index(tokens[:cut], lens, words)))
            np.testing.assert_equal(_plain(indexed), _plain(found), f"{cut} of {len(tokens)} tokens are indexed")
    return found


def _plain(found: object) -> object:
    return astuple(found) if is_dataclass(found) and not isinstance(found, type) else found
