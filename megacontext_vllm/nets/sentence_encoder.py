"""Sentence vectors of any sentence-transformers model that pools by the mean, out of its folder, by transformers alone.

(Reimers & Gurevych 2019, arXiv:1908.10084.) The teacher of LensNet, and what dense retrieval is measured with.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

_LONGEST = 256  # word pieces; what all-MiniLM-L6-v2 was trained on


class SentenceEncoder:
    """``folder``: of a transformers encoder and its tokenizer. On a GPU where there is one."""

    def __init__(self, folder: Path) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self._model = AutoModel.from_pretrained(str(folder), dtype=torch.float32).eval().to(self._device)

    def pieces(self, text: str) -> int:
        """How many word pieces the text is."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def embed(self, texts: list[str], batch: int = 64) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Yields which of the texts come next, and their unit vectors float32 ``[those, width]``.

        Texts of one length go together, ``batch`` at a time: padding is computed like anything else.
        """
        encoded = [self._tokenizer.encode(text, truncation=True, max_length=_LONGEST) for text in texts]
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            yield chosen, self._forward([encoded[i] for i in chosen])

    @torch.inference_mode()
    def _forward(self, encoded: list[list[int]]) -> npt.NDArray[np.float32]:
        batch = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self._device)
        hidden = self._model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        vectors: npt.NDArray[np.float32] = torch.nn.functional.normalize(mean, dim=-1).cpu().numpy()
        return vectors
