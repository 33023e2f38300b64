"""What tests of all folders share. The real model and the real text: `make model text` puts them there."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from megacontext_vllm.tree.store.library import TreeLibrary

CACHE = Path(os.environ.get("MEGACONTEXT_CACHE", Path.home() / ".cache" / "megacontext"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads that wait for each other by spinning take four times as long where another worker has the other core.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """With ``-n``, one worker runs a file, and all of ``tests/e2e``, whose files share engines of 3 GB each."""
    return _ByFile(config, log)


class _ByFile(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "tests/e2e" if file.startswith("tests/e2e/") else file


def _existing(path: Path, make: str) -> Path:
    if not path.exists():
        pytest.exit(f"{path} is missing: run `make {make}` first (`make test` does it all).", returncode=3)
    return path


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return _existing(CACHE / "models" / "SmolLM2-135M-Instruct", "model")


@pytest.fixture(scope="session")
def text() -> str:
    """At least 300,000 tokens of real text."""
    return _existing(CACHE / "texts" / "state_of_the_union.txt", "text").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def library(store: Path) -> Iterator[TreeLibrary]:
    """The library of a model whose fingerprint is bytes 0 to 15, in an empty store."""
    opened = TreeLibrary(store, bytes(range(16)))
    yield opened
    opened.close()
