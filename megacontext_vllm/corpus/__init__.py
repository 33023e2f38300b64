"""Real English text and code to train on and to measure with, split by document, every text with its licence.

Nothing of it is in this repository: ``fetch`` makes it from the pinned packages of ``manifest.json``, byte for byte the
same on every machine. docs/corpus.md says what is in it.
"""

from collections.abc import Collection
from pathlib import Path

from megacontext_vllm.corpus.document import KINDS, PROSE, SPLITS, CorpusError, Document, Kind, Split
from megacontext_vllm.corpus.fetch import fetch
from megacontext_vllm.corpus.manifest import corpus_folder
from megacontext_vllm.corpus.storage import read
from megacontext_vllm.corpus.tokens import TokenStream, make_stream, read_stream, stream_folder

__all__ = [
    "KINDS",
    "PROSE",
    "SPLITS",
    "CorpusError",
    "Document",
    "Kind",
    "Split",
    "TokenStream",
    "corpus_folder",
    "fetch",
    "load",
    "token_stream",
]


def load(split: Split, kinds: Collection[Kind] | None = None, folder: Path | None = None) -> list[Document]:
    """The documents of a split, of these kinds (None: all), by id. Raises CorpusError if there is no whole corpus."""
    documents = read(folder or corpus_folder(), split)
    return [document for document in documents if kinds is None or document.kind in kinds]


def token_stream(
    split: Split, tokenizer_file: Path, kinds: Collection[Kind] | None = None, folder: Path | None = None
) -> TokenStream:
    """The tokens of what ``load`` returns, without special tokens; made by the first call, then read from disk.

    ``tokenizer_file``: a tokenizer.json. Raises CorpusError if the corpus or the tokenizer is missing.
    """
    corpus = folder or corpus_folder()
    place = stream_folder(corpus, split, tokenizer_file, kinds)
    return read_stream(place) or make_stream(place, load(split, kinds, corpus), tokenizer_file)
