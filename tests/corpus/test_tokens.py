"""Token streams: the documents' own tokens, made once."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from megacontext_vllm.corpus import CorpusError, fetch, load, token_stream
from megacontext_vllm.corpus.manifest import Manifest


def test_tokens_decode_back_to_the_text(manifest: Manifest, tmp_path: Path, model_dir: Path) -> None:
    folder = fetch(tmp_path / "corpus", manifest=manifest)
    file = model_dir / "tokenizer.json"
    stream = token_stream("train", file, folder=folder)
    documents = load("train", folder=folder)
    assert stream.tokens.dtype == np.uint32 and stream.starts.dtype == np.int64 and stream.starts[0] == 0
    assert stream.ids == [document.id for document in documents]
    tokenizer = Tokenizer.from_file(str(file))
    for document, tokens in zip(documents, np.split(stream.tokens, stream.starts[1:])):
        assert tokenizer.decode(tokens.tolist(), skip_special_tokens=False) == document.text

    made = folder / "tokens"
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    again = token_stream("train", file, folder=folder)
    assert isinstance(again.tokens, np.memmap) and np.array_equal(again.tokens, stream.tokens)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before
    assert fetch(folder, manifest=manifest) == folder  # the tokens beside it do not make it another corpus


def test_kinds_have_streams_of_their_own(manifest: Manifest, tmp_path: Path, model_dir: Path) -> None:
    folder = fetch(tmp_path / "corpus", manifest=manifest)
    nothing = token_stream("train", model_dir / "tokenizer.json", ["code"], folder)
    assert len(nothing.tokens) == 0 and len(nothing.starts) == 0 and nothing.ids == []
    assert token_stream("train", model_dir / "tokenizer.json", ["fiction"], folder).ids


def test_without_a_tokenizer_it_is_said_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="make model"):
        token_stream("train", tmp_path / "tokenizer.json", folder=tmp_path)
