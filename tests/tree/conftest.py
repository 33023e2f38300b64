import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from histories import MODEL

from megacontext_vllm.tree.store.library import TreeLibrary


@pytest.fixture
def library(tmp_path: Path) -> Iterator[TreeLibrary]:
    made = TreeLibrary(tmp_path, MODEL)
    yield made
    made.close()


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one, for tests that make thousands of files or force them to the disk."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)
