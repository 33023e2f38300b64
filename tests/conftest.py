"""Where the real model and the real text of the tests lie; `make model text` puts them there."""

import os
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("MEGACONTEXT_CACHE", Path.home() / ".cache" / "megacontext"))

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


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
