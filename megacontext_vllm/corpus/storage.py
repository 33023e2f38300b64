"""The corpus on disk: a JSON-lines file a split, a table of the documents, and a stamp that says it is whole.

    train.jsonl, validation.jsonl, test.jsonl   a document a line, by id
    documents.json                              the same without the texts: characters and sha256 instead
    stamp.json                                  the manifest's key, and size and sha256 of the other files
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megacontext_vllm.corpus.document import SPLITS, CorpusError, Document, Split

DOCUMENTS = "documents.json"
STAMP = "stamp.json"
MISSING = "the corpus is not in {folder}. Run: make corpus, or: megacontext corpus fetch"
DAMAGED = "{file} is damaged. Delete its folder, then run: megacontext corpus fetch"


def write(folder: Path, documents: Sequence[Document], key: str) -> None:
    """Write all files into ``folder``, which exists; the stamp comes last."""
    table = [
        asdict(document)
        | {"characters": len(document.text), "sha256": hashlib.sha256(document.text.encode()).hexdigest()}
        for document in documents
    ]
    for row in table:
        del row["text"]
    contents = {DOCUMENTS: json.dumps(table, indent=0) + "\n"}
    for split in SPLITS:
        lines = (json.dumps(asdict(document), ensure_ascii=False) for document in documents if document.split == split)
        contents[f"{split}.jsonl"] = "".join(line + "\n" for line in lines)
    files = {}
    for name, content in contents.items():
        data = content.encode()
        (folder / name).write_bytes(data)
        files[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / STAMP).write_text(json.dumps({"key": key, "files": files}, indent=2) + "\n")


def is_whole(folder: Path, key: str) -> bool:
    """Whether ``folder`` has the corpus of this manifest, judged by the stamp and the files' sizes."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        sizes = {name: (folder / name).stat().st_size for name in stamp["files"]}
    except (OSError, ValueError, KeyError):
        return False
    return stamp["key"] == key and sizes == {name: file["size"] for name, file in stamp["files"].items()}


def read(folder: Path, split: Split) -> list[Document]:
    """The documents of a split, by id. Raises CorpusError if the corpus is missing or damaged."""
    return [Document(**json.loads(line)) for line in _content(folder, f"{split}.jsonl").split(b"\n") if line]


def table(folder: Path) -> list[dict[str, Any]]:
    """All documents without their texts, by id: id, source, kind, licence, split, characters, sha256."""
    rows: list[dict[str, Any]] = json.loads(_content(folder, DOCUMENTS))
    return rows


def _content(folder: Path, name: str) -> bytes:
    try:
        stamp = json.loads((folder / STAMP).read_text())
        data = (folder / name).read_bytes()
        expected = stamp["files"][name]["sha256"]
    except FileNotFoundError as error:
        raise CorpusError(MISSING.format(folder=folder)) from error
    except (ValueError, KeyError) as error:
        raise CorpusError(DAMAGED.format(file=folder / STAMP)) from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise CorpusError(DAMAGED.format(file=folder / name))
    return data
