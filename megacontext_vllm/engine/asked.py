"""What prompts ask and where it may be answered, remembered while they are answered.

An answer under way is planned for again and again, and its prompt stays the same.
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from megacontext_vllm.engine.remembered import Remembered
from megacontext_vllm.focus.focus import Focus, Scored
from megacontext_vllm.focus.text_index import TextIndex

_OF_ITS_OWN = 512
"""Blocks that as much memory would hold as a prompt takes whatever its length."""


class Asked:
    """Scored prompts. Threads may share it."""

    def __init__(self, focus: Focus, max_blocks: int = 16_000_000) -> None:
        """max_blocks: of all prompts together, 4 bytes each; the last one is kept whatever it has."""
        self._focus = focus
        self._known = Remembered[bytes, Scored](max_blocks, _blocks)

    def score(self, namespace: str, prompt: npt.NDArray[np.uint32], index: TextIndex | None = None) -> Scored:
        """What ``focus.score`` makes of ``prompt``, uint32 [N]. What a lens failed at is not remembered.

        index  of how ``prompt`` begins, if there is one.
        """
        begins, behind = (b"", 0) if index is None else (index.digest, len(index.tokens))
        key = blake2b(np.ascontiguousarray(prompt[behind:]).data, digest_size=16, key=begins).digest()
        scored = self._known.use(namespace, key)
        if scored is None:
            scored = self._focus.score(prompt, index)
            if scored.whole:
                self._known.put(namespace, key, scored)
        return scored


def _blocks(scored: Scored) -> int:
    return len(scored.utility) + _OF_ITS_OWN
