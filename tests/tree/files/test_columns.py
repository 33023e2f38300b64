import os
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from files.levels import die_at_write, flip, forked, killed
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.columns import Column, column_path


def test_values_are_where_the_format_says(tmp_path: Path) -> None:
    with Column(tmp_path, 3, "version", np.uint16, writable=True) as column:
        column.write(2, np.array([7, 0x1234], np.uint16))
    data = (tmp_path / "LOD3.version.col").read_bytes()
    head = b"MCTC" + struct.pack("<HHHH", 1, 3, 0, 0) + b"version".ljust(24, b"\0") + bytes(24)
    assert data[:64] == head + struct.pack("<I", zlib.crc32(head))
    assert data[64:] == bytes(4) + b"\x07\x00\x34\x12"


def test_what_nobody_wrote_is_zero(tmp_path: Path) -> None:
    with Column(tmp_path, 1, "created", np.uint32) as reader:
        np.testing.assert_array_equal(reader.read(5, 9), np.zeros(4))
    assert not list(tmp_path.iterdir())  # reading makes no file
    with Column(tmp_path, 1, "created", np.uint32, writable=True) as column:
        column.write(1_000_000, np.array([5], np.uint32))
        np.testing.assert_array_equal(column.read(999_998, 1_000_003), [0, 0, 5, 0, 0])
        with Column(tmp_path, 1, "created", np.uint32) as reader:  # at once, in other handles
            assert reader.read(1_000_000, 1_000_001) == [5]
            os.truncate(column.path, 64 + 4 * 1_000_000 + 3)  # a torn last value
            assert reader.read(1_000_000, 1_000_001) == [0]
    assert column_path(tmp_path, 1, "created").stat().st_blocks * 512 < 100_000


@pytest.mark.parametrize("bit", range(512))
def test_any_flipped_bit_of_the_header_makes_it_start_anew(
    tmp_path: Path, bit: int, caplog: pytest.LogCaptureFixture
) -> None:
    with Column(tmp_path, 1, "access_count", np.uint32, writable=True) as column:
        column.fill(0, 10, 3)
    flip(column.path, bit)
    damaged = column.path.read_bytes()
    with Column(tmp_path, 1, "access_count", np.uint32) as reader:
        assert not reader.read(0, 10).any()
    assert column.path.read_bytes() == damaged  # a reader changes nothing
    assert len(caplog.records) == 1
    with Column(tmp_path, 1, "access_count", np.uint32, writable=True) as column:
        assert not column.read(0, 10).any()
        column.fill(0, 2, 4)
    assert len(caplog.records) == 2
    with Column(tmp_path, 1, "access_count", np.uint32) as reader:
        np.testing.assert_array_equal(reader.read(0, 3), [4, 4, 0])
    assert os.listdir(tmp_path) == [column.path.name]


@pytest.mark.parametrize("foreign", ["level", "name", "dtype", "text", "short"])
def test_a_column_of_something_else_is_not_taken_for_this_one(tmp_path: Path, foreign: str) -> None:
    level, name, dtype = 1 + (foreign == "level"), "b" if foreign == "name" else "a", np.dtype(np.uint32)
    with Column(tmp_path, level, name, np.float32 if foreign == "dtype" else dtype, writable=True) as column:
        column.fill(0, 100, 1)
    path = column_path(tmp_path, 1, "a")
    column.path.rename(path)
    if foreign == "text":
        path.write_text("hello")
    elif foreign == "short":
        os.truncate(path, 63)
    with Column(tmp_path, 1, "a", dtype, writable=True) as mine:
        assert not mine.read(0, 100).any()


def test_an_empty_file_is_a_column_whose_creator_died(tmp_path: Path) -> None:
    column_path(tmp_path, 1, "a").touch()
    with Column(tmp_path, 1, "a", np.uint16) as reader:
        assert not reader.read(0, 3).any()
    with Column(tmp_path, 1, "a", np.uint16, writable=True) as column:
        column.fill(0, 3, 1)
        assert column.read(0, 3).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60_000), st.integers(1, 9000), st.integers(1, 70)), min_size=1, max_size=8))
def test_random_updates_fills_and_writes_are_what_an_array_would_be(
    changes: list[tuple[int, int, int]],
) -> None:
    expected = np.zeros(1_000_000, np.uint32)
    with tempfile.TemporaryDirectory() as folder, Column(Path(folder), 2, "a", np.uint32, writable=True) as column:
        for start, step, count in changes:
            indices = start + step * np.arange(count)
            column.update(indices, lambda old: old + np.arange(len(old), dtype=np.uint32) + 1)
            expected[indices] += np.arange(count, dtype=np.uint32) + 1
            column.fill(start, start + count // 2, step)
            expected[start : start + count // 2] = step
        np.testing.assert_array_equal(column.read(0, len(expected)), expected)


def test_errors_of_the_disk_have_a_name(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="absent"):
        Column(tmp_path / "absent", 1, "a", np.uint32, writable=True)
    column_path(tmp_path, 1, "a").mkdir()
    with pytest.raises(StoreError, match="LOD1.a.col"):
        Column(tmp_path, 1, "a", np.uint32, writable=True)
    with pytest.raises(StoreError, match="LOD1.a.col"):
        Column(tmp_path, 1, "a", np.uint32)
    with Column(tmp_path, 2, "a", np.uint32, writable=True) as column:
        column.fill(0, 5, 1)
        os.close(column._fd)
        column._fd = os.open("/dev/full", os.O_RDWR)
        with pytest.raises(StoreError, match="No space left"):
            column.fill(0, 5, 2)


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    def work() -> None:
        with Column(tmp_path, 1, "a", np.uint32, writable=True) as column:
            die_at_write(3)
            for at in range(100):
                column.fill(at, at + 1, at + 1)

    killed(forked(work), 0.2)
    with Column(tmp_path, 1, "a", np.uint32) as reader:
        np.testing.assert_array_equal(reader.read(0, 5), [1, 2, 3, 0, 0])
