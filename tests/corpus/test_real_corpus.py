"""The corpus itself, as `make corpus` made it: what docs/corpus.md promises of it."""

import re
from pathlib import Path

from megacontext_vllm.corpus import KINDS, PROSE, Document, token_stream
from megacontext_vllm.corpus.build import SHORTEST, verify
from megacontext_vllm.corpus.manifest import load_manifest
from megacontext_vllm.corpus.overlap import count_shared


def test_it_is_what_the_manifest_says(corpus: list[Document]) -> None:
    verify(load_manifest(), sorted(corpus, key=lambda document: document.id))


def test_no_passage_is_in_two_splits(corpus: list[Document]) -> None:
    assert count_shared(corpus) == 0


def test_enough_is_held_out(corpus: list[Document], model_dir: Path) -> None:
    file = model_dir / "tokenizer.json"
    test, validation = (token_stream(split, file, PROSE) for split in ("test", "validation"))  # type: ignore[arg-type]
    assert len(test.tokens) >= 1_500_000 and len(validation.tokens) >= 500_000
    assert sum(len(document.text) for document in corpus) >= 60_000_000
    for split in ("test", "validation", "train"):
        sources = {document.source for document in corpus if document.split == split}
        assert sources == {source.name for source in load_manifest().sources}


def test_every_document_has_a_licence_and_a_length(corpus: list[Document]) -> None:
    licences = {"public domain", "MIT", "Apache-2.0", "BSD-3-Clause"}
    assert {document.licence for document in corpus} == licences
    assert all(document.kind in KINDS and len(document.text) >= SHORTEST for document in corpus)
    assert len({document.id for document in corpus}) == len(corpus)


def test_prose_reads_like_prose(corpus: list[Document]) -> None:
    marks = re.compile(r"^\s*\.\. [\w-]+::|^[=~^\"-]{4,}$|</?(?:p|div|span|li|ul|br)>|:(?:ref|func|class|doc):`", re.M)
    prose = [document for document in corpus if document.kind != "code"]
    marked = sum(len(marks.findall(document.text)) for document in prose)
    assert marked < len(prose) / 10, "mark-up is left"
    assert not any("\r" in document.text or "\n\n\n" in document.text for document in prose)
