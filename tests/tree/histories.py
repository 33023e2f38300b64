"""What the tests of the library share: histories that have a known part in common, and a store to put them in."""

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.tree.store.library import Acquired, TreeLibrary

MODEL = bytes(range(16))
BASE = np.random.default_rng(0).integers(0, 150_000, 10_000, dtype=np.uint32)


def put(library: TreeLibrary, tokens: NDArray[np.uint32], namespace: str = "default") -> str:
    """Store a history, as a finished request leaves it."""
    acquired = library.acquire(namespace, tokens)
    library.release(acquired.tree)
    return acquired.tree.tree_id


def diverging(common: int, length: int) -> NDArray[np.uint32]:
    tokens = BASE[:length].copy()
    tokens[common:] += 1
    return tokens


def check(acquired: Acquired, tokens: NDArray[np.uint32]) -> None:
    assert acquired.tree.length >= len(tokens)
    np.testing.assert_array_equal(acquired.tree.tokens(0, len(tokens)), tokens)
