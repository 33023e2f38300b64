"""What is forced to the disk, and when. No power cut can be produced here: the calls that guard against it are seen."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.tree.files.durability import Durability, FsyncPolicy
from megacontext_vllm.tree.files.header import COUNT_OFFSET
from megacontext_vllm.tree.store.library import TreeLibrary

MODEL = bytes(range(16))
TOKENS = np.arange(3000, dtype=np.uint32)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files in the order they were forced out, and ``commit`` for each count that was written."""
    seen: list[str] = []
    fsync, pwrite = os.fsync, os.pwrite

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def watched_fsync(fd: int) -> None:
        seen.append(name(fd))
        fsync(fd)

    def watched_pwrite(fd: int, data: bytes, offset: int) -> int:
        if name(fd) == "LOD0.ctx" and offset == COUNT_OFFSET:
            seen.append("commit")
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "pwrite", watched_pwrite)
    return seen


def store(folder: Path, durability: Durability) -> TreeLibrary:
    library = TreeLibrary(folder, MODEL, durability=durability)
    library.release(library.acquire("default", TOKENS).tree)
    return library


def test_always_forces_rows_and_checksums_out_before_the_count_and_the_count_after(
    tmp_path: Path, calls: list[str]
) -> None:
    library = store(tmp_path, Durability("always"))
    at = calls.index("commit")
    assert {"LOD0.ctx", "LOD0.crc"} <= set(calls[:at])
    assert "LOD0.ctx" in calls[at:]
    assert "meta.json.tmp" in calls and "default" in calls  # the tree's name in its folder, too
    library.close()


def test_interval_forces_out_by_and_by(tmp_path: Path, calls: list[str]) -> None:
    library = store(tmp_path, Durability("interval", seconds=0.05))
    patience = time.monotonic() + 10
    while not {"LOD0.ctx", "LOD0.crc", "meta.json"} <= set(calls) and time.monotonic() < patience:
        time.sleep(0.01)
    assert {"LOD0.ctx", "LOD0.crc", "meta.json", "default"} <= set(calls)
    library.close()


def test_closing_the_library_forces_out_the_rest(tmp_path: Path, calls: list[str]) -> None:
    library = store(tmp_path, Durability("interval", seconds=3600))
    assert "LOD0.ctx" not in calls
    library.close()
    assert {"LOD0.ctx", "LOD0.crc", "meta.json", "default"} <= set(calls)


@pytest.mark.parametrize("policy", ["never", "interval"])
def test_what_is_gone_meanwhile_is_no_loss(tmp_path: Path, policy: FsyncPolicy, calls: list[str]) -> None:
    library = TreeLibrary(tmp_path, MODEL, durability=Durability(policy, seconds=3600))
    library.discard(library.acquire("default", TOKENS).tree)
    library.close()
    assert "LOD0.ctx" not in calls
