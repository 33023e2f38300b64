"""What once went wrong in ``tree/files``, found by tests made to break it."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files import level_reader
from megacontext_vllm.tree.files.checksums import Checksums, checksum_path
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import LevelWriter, open_again, write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.files.mend import rebuild_checksums

HEADER = Header(1, RowType.FLOAT32, 2, 0, bytes(16), b"n" * 16)


def rows(start: int, stop: int, salt: float = 0) -> np.ndarray:
    return np.arange(2 * start, 2 * stop, dtype=np.float32).reshape(-1, 2) + np.float32(salt)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, HEADER, 0, rows(0, 100))
    return path


def test_replacing_a_row_does_not_bless_damage_beside_it(file: Path) -> None:
    with open(file, "r+b") as damaged:
        damaged.seek(64 + 3 * 8)
        damaged.write(b"\xff")
    with open_again(file) as writer:
        with pytest.raises(CorruptTreeError, match="rows 0 to 32"):
            writer.overwrite(5, rows(5, 6, 1))
        writer.overwrite(0, rows(0, 32, 1))  # all of the page: nothing of the damage stays
    reader = LevelReader(file)
    np.testing.assert_array_equal(reader.read(0, 32), rows(0, 32, 1))
    reader.close()


def test_rows_and_checksums_that_vanish_together_are_an_error(file: Path) -> None:
    reader = LevelReader(file)
    os.truncate(file, 64 + 32 * 8)
    os.truncate(checksum_path(file), 64 + 4)
    for start in (0, 31):
        with pytest.raises(CorruptTreeError):
            reader.read(start, 64)
    reader.close()


def test_the_slot_that_is_believed_is_the_one_that_is_renewed(file: Path) -> None:
    with open_again(file) as writer:
        fd = os.open(checksum_path(file), os.O_RDWR)
        sums = Checksums(fd, 1, 8)
        sums.write_tail(100, 110, 1)  # a writer died before it committed row 110
        sums.write_tail(110, 100, sums.tail(100) or 0)  # the other slot names 100, too
        os.close(fd)
        writer.overwrite(97, rows(97, 98, 5))
    reader = LevelReader(file)
    np.testing.assert_array_equal(reader.read(97, 98), rows(97, 98, 5))
    reader.close()
    open_again(file).close()


def test_an_open_reader_sees_checksums_that_were_made_anew(file: Path) -> None:
    reader = LevelReader(file)
    checksum_path(file).unlink()
    with pytest.raises(CorruptTreeError, match="no checksums"):
        reader.read(0, 10)
    rebuild_checksums(file)
    np.testing.assert_array_equal(reader.read(0, 10), rows(0, 10))
    reader.close()


def test_no_rows_have_the_shape_of_rows(tmp_path: Path) -> None:
    LevelWriter(tmp_path / "LOD1.ctx", HEADER).close()
    reader = LevelReader(tmp_path / "LOD1.ctx")
    for empty in (reader.rows(0, 0), reader.read(0, 0)):
        assert (empty.shape, empty.dtype) == ((0, 2), np.float32)
    reader.close()


def test_a_count_that_cannot_be_read_is_a_store_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = LevelReader(file)

    def fail(*arguments: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(level_reader.os, "pread", fail)
    with pytest.raises(StoreError, match="Input/output"):
        reader.refresh()
    monkeypatch.undo()
    reader.close()
