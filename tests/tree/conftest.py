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
