"""Sentence vectors of a sentence-transformers model, out of its folder, by transformers alone.

(Reimers & Gurevych 2019, arXiv:1908.10084.) The encoder lens, the teacher of LensNet, and what dense retrieval is
measured with.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from transformers import AutoModel, AutoTokenizer

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.errors import ConfigError

logger = logging.getLogger("vllm.megacontext")

_LONGEST = 256  # word pieces; what all-MiniLM-L6-v2 was trained on
_BATCH = 64
_KNOWN = {"Transformer", "Pooling", "Normalize"}


class SentenceEncoder:
    """Texts to unit vectors, for one thread at a time.

    folder  of a transformers encoder in safetensors and its tokenizer. What sentence-transformers adds is read where it
            is there: pooling by the mean (the default) or by the first token, and the prompts that go before questions
            and documents.
    device  of torch, e.g. ``"cpu"``; by default a GPU where there is one.

    Raises ConfigError for a folder that holds no such model, or one that does more than this knows.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self._first = _pools_by_first(folder)
        prompts = _json(folder / "config_sentence_transformers.json").get("prompts") or {}
        self._question = prompts.get("query", "")
        self._document = prompts.get("document", prompts.get("passage", ""))
        require_encoder(folder)
        try:
            self.device = _device(device)
            self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            model = AutoModel.from_pretrained(
                str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True
            )
            self._model = model.eval().to(self.device)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ConfigError(f"the sentence encoder in {folder} cannot be loaded: {error}") from error

    def pieces(self, text: str) -> int:
        """How many word pieces the text is."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def question(self, text: str) -> npt.NDArray[np.float32]:
        """The unit vector of a question, float32 ``[width]``."""
        return self._all([self._question + text])[0]

    def documents(self, texts: list[str]) -> npt.NDArray[np.float32]:
        """The unit vectors of what may answer one, float32 ``[len(texts), width]``; at least one text."""
        return self._all([self._document + text for text in texts])

    def _all(self, texts: list[str]) -> npt.NDArray[np.float32]:
        parts = list(self.embed(texts))
        vectors = np.empty((len(texts), parts[0][1].shape[1]), dtype=np.float32)
        for chosen, part in parts:
            vectors[chosen] = part
        return vectors

    def embed(self, texts: list[str], batch: int = _BATCH) -> Iterator[tuple[list[int], npt.NDArray[np.float32]]]:
        """Yields which of the texts come next, and their unit vectors float32 ``[those, width]``, without any prompt.

        Texts of one length go together, ``batch`` at a time: padding is computed like anything else.
        """
        encoded = self._tokenizer(texts, truncation=True, max_length=_LONGEST)["input_ids"] if texts else []
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        for at in range(0, len(order), batch):
            chosen = order[at : at + batch]
            yield chosen, self._forward([encoded[i] for i in chosen])

    @torch.inference_mode()
    def _forward(self, encoded: list[list[int]]) -> npt.NDArray[np.float32]:
        batch = self._tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.device)
        hidden = self._model(**batch).last_hidden_state
        if self._first:
            pooled = hidden[:, 0]
        else:
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
        vectors: npt.NDArray[np.float32] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
        return vectors


def require_encoder(folder: Path) -> None:
    """Raises ConfigError for a folder that holds no model at all."""
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{folder} holds no sentence encoder: give the folder of a sentence-transformers model with its "
            "config.json, tokenizer and model.safetensors (no hub is asked)."
        )


def encoder_of(settings: MegaContextConfig) -> SentenceEncoder | None:
    """The sentence encoder that ``settings`` ask for, if any. Raises ConfigError where it cannot be had."""
    if settings.encoder is None:
        return None
    encoder = SentenceEncoder(settings.encoder, settings.encoder_device)
    logger.info("MegaContext: the sentence encoder in %s reads what is found, on %s.", settings.encoder, encoder.device)
    return encoder


def _device(name: str | None) -> torch.device:
    """With a number, as each thread has a current GPU of its own, and questions are asked in another than this one."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _pools_by_first(folder: Path) -> bool:
    """Whether the vector of a text is that of its first token; else the mean of all."""
    modules = _json(folder / "modules.json", [])
    unknown = sorted({str(module["type"]).rsplit(".", 1)[-1] for module in modules} - _KNOWN)
    if unknown:
        raise ConfigError(f"the sentence encoder in {folder} has a {unknown[0]} layer, which is not supported.")
    pooling = _json(folder / "1_Pooling" / "config.json")
    modes = [name for name, used in pooling.items() if name.startswith("pooling_mode") and used is True]
    if modes not in ([], ["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise ConfigError(
            f"the sentence encoder in {folder} pools by {' and '.join(modes)}: only the mean and the first token "
            "(pooling_mode_mean_tokens, pooling_mode_cls_token) are supported."
        )
    return modes == ["pooling_mode_cls_token"]


def _json(file: Path, default: Any = None) -> Any:
    """What a file of JSON holds, ``default`` (an empty object) where there is none."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {} if default is None else default
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
