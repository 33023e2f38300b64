import time
from hashlib import blake2b

import numpy as np

from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes


def test_chain_is_what_the_format_says() -> None:
    tokens = np.arange(2 * ANCHOR + 5, dtype=np.uint32)
    first = blake2b(tokens[:ANCHOR].astype("<u4").tobytes(), digest_size=16).digest()
    second = blake2b(first + tokens[ANCHOR : 2 * ANCHOR].astype("<u4").tobytes(), digest_size=16).digest()
    assert chained_hashes(tokens) == [first, second]


def test_only_complete_runs_are_hashed() -> None:
    for length, hashes in ((0, 0), (ANCHOR - 1, 0), (ANCHOR, 1), (ANCHOR + 1, 1), (2 * ANCHOR - 1, 1), (2 * ANCHOR, 2)):
        assert len(chained_hashes(np.zeros(length, np.uint32))) == hashes


def test_a_change_alters_its_hash_and_all_later_ones() -> None:
    tokens = np.arange(5 * ANCHOR, dtype=np.uint32)
    before = chained_hashes(tokens)
    tokens[2 * ANCHOR] += 1
    after = chained_hashes(tokens)
    assert [a == b for a, b in zip(before, after)] == [True, True, False, False, False]


def test_strided_input_hashes_like_its_copy() -> None:
    tokens = np.arange(6 * ANCHOR, dtype=np.uint32)
    assert chained_hashes(tokens[::2]) == chained_hashes(tokens[::2].copy())


def test_a_million_tokens_are_quick() -> None:
    tokens = np.arange(1_000_000, dtype=np.uint32)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        chained_hashes(tokens)
        best = min(best, time.perf_counter() - start)
    print(f"hashing 1 M tokens: {best * 1e3:.1f} ms")
    assert best < 0.05
