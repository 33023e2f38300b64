"""Content ids: what stands for a gist in the scheduler's copy of a prompt.

vLLM's prefix cache hashes the ids of a prompt. An id that is a hash of what the gist was made of makes these hashes
exact, within a request and across requests; an id made of positions would give hits on another history's cache.
"""

import hashlib

import numpy as np
import numpy.typing as npt

FIRST_CONTENT_ID = 1 << 62  # above every vocabulary, and still a signed 64-bit integer


def content_id(gist_fingerprint: bytes, level: int, tokens: npt.NDArray[np.uint32]) -> int:
    """The id of the gist of one node: ``tokens`` are all tokens under it, ``32**level`` of them.

    Collisions within 2^62 values are as unlikely as those vLLM accepts for its own block hashes of a prompt.
    """
    assert tokens.size == 32**level, (tokens.size, level)
    digest = hashlib.blake2b(tokens.astype("<u4", copy=False).tobytes(), digest_size=8, key=gist_fingerprint).digest()
    return FIRST_CONTENT_ID | (int.from_bytes(digest, "little") & (FIRST_CONTENT_ID - 1))


def is_content_id(token_id: int) -> bool:
    return token_id >= FIRST_CONTENT_ID
