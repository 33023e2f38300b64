"""``files/holes.py``; it is here because curation is what it is for."""

import errno
import os
from pathlib import Path

import pytest

from megacontext_vllm.tree.files import holes


@pytest.fixture
def fd(tmp_path: Path) -> int:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1_000_000)
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    return fd


def check(fd: int, first: int, stop: int) -> None:
    data = os.pread(fd, 2_000_000, 0)
    assert data == b"x" * first + bytes(stop - first) + b"x" * (1_000_000 - stop)


def test_a_hole_reads_as_zeros_and_frees_whole_blocks(fd: int) -> None:
    blocks = os.fstat(fd).st_blocks
    assert holes.punch(fd, 100_001, 500_000)
    check(fd, 100_001, 600_001)
    assert (blocks - os.fstat(fd).st_blocks) * 512 >= 500_000 - 2 * 4096
    assert holes.punch(fd, 100_001, 500_000)  # again
    check(fd, 100_001, 600_001)
    os.close(fd)


def test_a_hole_never_makes_a_file_longer(fd: int) -> None:
    assert holes.punch(fd, 900_000, 5_000_000) and holes.punch(fd, 2_000_000, 5) and holes.punch(fd, 0, 0)
    check(fd, 900_000, 1_000_000)
    os.close(fd)


def test_zeros_are_written_where_there_are_no_holes(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [errno.EINTR, errno.EOPNOTSUPP]
    monkeypatch.setattr(holes, "_fallocate", lambda: lambda *_: answers.pop(0))
    monkeypatch.setattr(holes, "_CHUNK_BYTES", 7_000)
    assert not holes.punch(fd, 100_001, 500_000)
    check(fd, 100_001, 600_001)
    os.close(fd)


def test_other_errors_are_errors(fd: int, tmp_path: Path) -> None:
    os.close(fd)
    reading = os.open(tmp_path / "file", os.O_RDONLY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        holes.punch(reading, 0, 4096)
    os.close(reading)
