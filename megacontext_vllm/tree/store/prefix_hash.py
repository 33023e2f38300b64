"""Chained hashes of a token history: equal hash k means equal tokens ``[0, (k + 1) * ANCHOR)``, whatever follows."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

ANCHOR = 1024
"""Tokens between two hashes: small enough that little is compared token by token, large enough for a small index."""

HASH_BYTES = 16


def chained_hashes(tokens: NDArray[np.uint32], previous: bytes = b"") -> list[bytes]:
    """Hash every complete run of ``ANCHOR`` tokens, each chained to the one before.

    ``tokens``: uint32 ``[n]``. Returns ``n // ANCHOR`` digests of 16 bytes,
    ``hash_k = blake2b(hash_{k-1} + little-endian bytes of run k)``; the first is chained to ``previous``, which is
    empty at the start of a history.
    """
    assert tokens.ndim == 1
    assert tokens.dtype == np.uint32
    data = np.ascontiguousarray(tokens, dtype="<u4").view(np.uint8)
    run_bytes = ANCHOR * 4
    hashes: list[bytes] = []
    for k in range(tokens.size // ANCHOR):
        state = blake2b(previous, digest_size=HASH_BYTES)
        state.update(data[k * run_bytes : (k + 1) * run_bytes].data)
        previous = state.digest()
        hashes.append(previous)
    return hashes
