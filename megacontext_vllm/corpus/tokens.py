"""A split of the corpus as tokens, kept beside the corpus so that a tokenizer runs over it only once."""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.corpus.document import KINDS, CorpusError, Document, Kind, Split

_CHARACTERS_AT_ONCE = 4_000_000  # the tokenizer's own representation of a text is 50 times as large


@dataclass(frozen=True)
class TokenStream:
    """The documents of a split one after the other, in the order of ``load``, nothing in between.

    ``tokens``: uint32 [N], on disk. ``starts``: int64 [documents], where each begins. ``ids``: the documents' ids.
    """

    tokens: NDArray[np.uint32]
    starts: NDArray[np.int64]
    ids: list[str]


def stream_folder(corpus: Path, split: Split, tokenizer_file: Path, kinds: Collection[Kind] | None) -> Path:
    """Where the tokens of this split, of these kinds, by this tokenizer lie. Raises CorpusError without the file."""
    try:
        with tokenizer_file.open("rb") as file:
            tokenizer = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorpusError(f"there is no tokenizer to read: {error}. For the default model run: make model") from error
    wanted = ",".join(kind for kind in KINDS if kinds is None or kind in kinds)
    return corpus / "tokens" / f"{split}-{hashlib.sha256(f'{tokenizer} {wanted}'.encode()).hexdigest()[:16]}"


def read_stream(folder: Path) -> TokenStream | None:
    try:
        tokens = np.load(folder / "tokens.npy", mmap_mode="r")
        return TokenStream(tokens, np.load(folder / "starts.npy"), json.loads((folder / "ids.json").read_text()))
    except FileNotFoundError:
        return None


def make_stream(folder: Path, documents: Sequence[Document], tokenizer_file: Path) -> TokenStream:
    """Tokenize and keep. The folder is complete or absent; of two runs at the same time one is kept."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        made = Path(temporary) / "stream"
        made.mkdir()
        parts = list(_tokenized(documents, tokenizer_file))
        lengths = [len(part) for part in parts]
        np.save(made / "tokens.npy", np.concatenate([*parts, np.empty(0, np.uint32)]))
        np.save(made / "starts.npy", (np.cumsum(lengths) - lengths).astype(np.int64))
        (made / "ids.json").write_text(json.dumps([document.id for document in documents]))
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():  # otherwise another run was faster, and made the same
                raise
    stream = read_stream(folder)
    assert stream is not None
    return stream


def _tokenized(documents: Sequence[Document], tokenizer_file: Path) -> Iterator[NDArray[np.uint32]]:
    """uint32 [tokens] of each document."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise CorpusError("tokens need the package tokenizers (vLLM brings it): pip install tokenizers") from error
    tokenizer: Any = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    batch: list[str] = []
    for place, document in enumerate(documents, 1):
        batch.append(document.text)
        if place == len(documents) or sum(map(len, batch)) >= _CHARACTERS_AT_ONCE:
            for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
                yield np.array(encoding.ids, np.uint32)
            batch.clear()
