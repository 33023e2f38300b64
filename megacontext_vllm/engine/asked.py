"""What prompts ask and where it may be answered, remembered while they are answered.

An answer under way is planned for again and again, and its prompt stays the same.
"""

import threading
from collections import OrderedDict
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.focus import Focus, Scored
from megacontext_vllm.focus.text_index import TextIndex

_OF_ITS_OWN = 512
"""Blocks that as much memory would hold as a prompt takes whatever its length."""


class Asked:
    """Scored prompts, least recently used out first. Threads may share it.

    Prompts of one namespace are not looked up for another: how long a plan takes would tell what others sent.
    """

    def __init__(self, focus: Focus, max_blocks: int = 16_000_000) -> None:
        """max_blocks: of all prompts together, 4 bytes each; the last one is kept whatever it has."""
        self._focus, self._left = focus, max_blocks
        self._known: OrderedDict[tuple[str, bytes], Scored] = OrderedDict()
        self._lock = threading.Lock()

    def score(self, namespace: str, prompt: npt.NDArray[np.uint32], index: TextIndex | None = None) -> Scored:
        """What ``focus.score`` makes of ``prompt``, uint32 [N]. What a lens failed at is not remembered.

        index  of how ``prompt`` begins, if there is one.
        """
        begins, behind = (b"", 0) if index is None else (index.digest, len(index.tokens))
        key = namespace, blake2b(np.ascontiguousarray(prompt[behind:]).data, digest_size=16, key=begins).digest()
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        scored = self._focus.score(prompt, index)
        if scored.whole:
            with self._lock:
                self._remember(key, scored)
        return scored

    def _remember(self, key: tuple[str, bytes], scored: Scored) -> None:
        if key in self._known:  # by another thread
            return
        self._known[key] = scored
        self._left -= _blocks(scored)
        while self._left < 0 and len(self._known) > 1:
            _, oldest = self._known.popitem(last=False)
            self._left += _blocks(oldest)


def _blocks(scored: Scored) -> int:
    return len(scored.utility) + _OF_ITS_OWN
