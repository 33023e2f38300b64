"""What prompts ask and where it may be answered, remembered while they are answered.

An answer under way is planned for again and again, and its prompt stays the same.
"""

import threading
from collections import OrderedDict
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from megacontext_vllm.focus.focus import Focus, Scored


class Asked:
    """Scored prompts, least recently used out first. Threads may share it.

    Prompts of one namespace are not looked up for another: how long a plan takes would tell what others sent.
    """

    def __init__(self, focus: Focus, max_blocks: int = 16_000_000) -> None:
        """max_blocks: of all prompts together, 4 bytes each; the last one is kept whatever it has."""
        self._focus, self._max_blocks = focus, max_blocks
        self._known: OrderedDict[tuple[str, bytes], Scored] = OrderedDict()
        self._lock = threading.Lock()

    def score(self, namespace: str, prompt: npt.NDArray[np.uint32]) -> Scored:
        """What ``focus.score`` makes of ``prompt``, uint32 [N]."""
        key = namespace, blake2b(np.ascontiguousarray(prompt).data, digest_size=16).digest()
        with self._lock:
            known = self._known.pop(key, None)
        scored = known or self._focus.score(prompt)
        with self._lock:
            self._known[key] = scored
            while len(self._known) > 1 and sum(len(each.utility) for each in self._known.values()) > self._max_blocks:
                self._known.popitem(last=False)
        return scored
