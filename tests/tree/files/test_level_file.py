import fcntl
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError, TreeLockedError
from megacontext_vllm.tree.files.level_file import HEADER_BYTES, Header, LevelReader, RowType, read_count, write_rows

MODEL, GIST = bytes(range(16)), bytes(range(100, 116))
TOKENS = Header(0, RowType.UINT32, 1, 0, MODEL, bytes(16))
GISTS = Header(2, RowType.FLOAT16, 8, 0, MODEL, GIST)


def ids(start: int, stop: int) -> NDArray[np.uint32]:
    return np.arange(start, stop, dtype=np.uint32)


def contents(path: Path) -> NDArray[Any]:
    reader = LevelReader(path)
    rows = reader.rows(0, reader.count)
    reader.close()
    return rows  # a view stays valid after close


def test_header_bytes_at_each_documented_offset() -> None:
    data = Header(3, RowType.BFLOAT16, 4096, 0x0102030405060708, MODEL, GIST).pack()
    assert len(data) == HEADER_BYTES == 64
    assert data[0:4] == b"MCTX"
    assert data[4:6] == b"\x01\x00"  # format version
    assert data[6:8] == b"\x03\x00"  # level
    assert data[8:10] == b"\x20\x00"  # block size
    assert data[10:12] == b"\x02\x00"  # dtype code
    assert data[12:16] == b"\x00\x10\x00\x00"  # dim
    assert data[16:24] == b"\x08\x07\x06\x05\x04\x03\x02\x01"  # row count
    assert data[24:40] == MODEL
    assert data[40:56] == GIST
    assert data[56:60] == zlib.crc32(data[0:16] + data[24:56]).to_bytes(4, "little")
    assert data[60:64] == bytes(4)


@pytest.mark.parametrize("dtype", [RowType.FLOAT16, RowType.BFLOAT16, RowType.FLOAT32])
def test_header_round_trip(dtype: RowType) -> None:
    header = Header(1, dtype, 7, 12, MODEL, GIST)
    assert Header.unpack(header.pack()) == header


@pytest.mark.parametrize("position", [p for p in range(60) if not 16 <= p < 24])
def test_every_protected_byte_is_checked(position: int) -> None:
    data = bytearray(GISTS.pack())
    data[position] ^= 0x40
    with pytest.raises(CorruptTreeError):
        Header.unpack(bytes(data))


def test_header_of_unknown_layout_is_refused_though_its_checksum_holds() -> None:
    for offset, value in ((4, 2), (8, 16), (10, 9), (12, 0)):
        data = bytearray(GISTS.pack())
        data[offset] = value
        data[56:60] = zlib.crc32(data[0:16] + data[24:56]).to_bytes(4, "little")
        with pytest.raises(CorruptTreeError):
            Header.unpack(bytes(data))
    with pytest.raises(CorruptTreeError, match="bytes"):
        Header.unpack(b"MCTX")


def test_rows_are_where_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "LOD2.ctx"
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float16)
    assert write_rows(path, GISTS, 0, rows[:2]) == 2
    assert write_rows(path, GISTS, 2, rows[2:], fsync=True) == 5
    data = path.read_bytes()
    assert data[:64] == replace(GISTS, count=5).pack()
    for i in range(5):
        assert data[64 + i * 16 : 64 + (i + 1) * 16] == rows[i].astype("<f2").tobytes()
    np.testing.assert_array_equal(contents(path), rows)


@pytest.mark.parametrize("dtype", list(RowType))
def test_every_row_type_round_trips(tmp_path: Path, dtype: RowType) -> None:
    header = TOKENS if dtype is RowType.UINT32 else replace(GISTS, dtype=dtype)
    shape = (33,) if header.level == 0 else (33, 8)
    rows = np.random.default_rng(1).integers(0, 60_000, shape).astype(dtype.numpy)
    write_rows(tmp_path / "a", header, 0, rows[::3])  # strided input
    np.testing.assert_array_equal(contents(tmp_path / "a"), rows[::3])
    assert contents(tmp_path / "a").dtype == dtype.numpy


def test_count_of_missing_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    assert read_count(path) == 0
    path.touch()  # its creator died before the header
    assert read_count(path) == 0
    with pytest.raises(CorruptTreeError):
        LevelReader(path)
    assert write_rows(path, TOKENS, 0, ids(0, 3)) == 3
    assert read_count(path) == 3
    with pytest.raises(FileNotFoundError):
        LevelReader(tmp_path / "absent")
    with pytest.raises(StoreError):
        read_count(path / "below a file")


def test_reader_sees_committed_rows_only_and_follows_growth(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, ids(0, 10))
    reader = LevelReader(path)
    old = reader.rows(0, 10)
    with path.open("ab") as file:
        file.write(ids(10, 20).tobytes())  # rows without a commit
    assert reader.refresh() == 10
    for start, stop in ((0, 11), (-1, 3), (5, 4)):
        with pytest.raises(IndexError):
            reader.rows(start, stop)
    write_rows(path, TOKENS, 10, ids(100, 5000))  # cuts the unfinished write, then appends
    assert reader.count == 10
    assert reader.refresh() == 4910
    np.testing.assert_array_equal(reader.rows(5, 4910), np.concatenate([ids(5, 10), ids(100, 5000)]))
    np.testing.assert_array_equal(old, ids(0, 10))
    assert reader.rows(10, 10).shape == (0,)
    assert not reader.rows(0, 1).flags.writeable
    assert reader.rows(1, 3).base is not None  # a view, not a copy
    reader.close()
    reader.close()


def test_unfinished_write_is_cut_back_on_open(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, ids(0, 10))
    with path.open("ab") as file:
        file.write(b"half a row and more")
    assert write_rows(path, TOKENS, 10, ids(0, 0)) == 10
    assert path.stat().st_size == 64 + 10 * 4


def test_shorter_than_count_is_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, ids(0, 10))
    reader = LevelReader(path)
    write_rows(path, TOKENS, 10, ids(10, 20))
    for size in (64 + 79, 64, 63, 1):
        os.truncate(path, size)
        with pytest.raises(CorruptTreeError, match=r"LOD0\.ctx"):
            LevelReader(path)
        with pytest.raises(CorruptTreeError, match=r"LOD0\.ctx"):
            write_rows(path, TOKENS, 20, ids(0, 1))
    with pytest.raises(CorruptTreeError, match="header"):
        reader.refresh()
    os.truncate(path, 0)
    write_rows(path, TOKENS, 0, ids(0, 12))
    os.truncate(path, 100)
    reader.refresh()
    with pytest.raises(CorruptTreeError):
        reader.rows(0, 12)


def test_rows_must_start_at_the_committed_count(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, ids(0, 10))
    for start in (0, 9, 11):
        with pytest.raises(StoreError, match="10 rows are committed"):
            write_rows(path, TOKENS, start, ids(0, 1))
    np.testing.assert_array_equal(contents(path), ids(0, 10))


def test_other_fingerprints_and_layouts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "LOD2.ctx"
    rows = np.zeros((1, 8), np.float16)
    write_rows(path, GISTS, 0, rows)
    for other in (replace(GISTS, model_fingerprint=GIST), replace(GISTS, gist_fingerprint=MODEL)):
        with pytest.raises(FingerprintMismatchError, match=r"LOD2\.ctx"):
            write_rows(path, other, 1, rows)
    with pytest.raises(CorruptTreeError, match="level"):
        write_rows(path, replace(GISTS, level=1), 1, rows)
    with pytest.raises(CorruptTreeError, match="BFLOAT16"):
        write_rows(path, replace(GISTS, dtype=RowType.BFLOAT16), 1, rows.view(np.uint16))
    with pytest.raises(CorruptTreeError, match="width"):
        write_rows(path, replace(GISTS, dim=4), 1, rows[:, :4])
    assert read_count(path) == 1


def test_a_write_under_way_excludes_another(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, ids(0, 1))
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TreeLockedError):
            write_rows(path, TOKENS, 1, ids(1, 2))
    assert write_rows(path, TOKENS, 1, ids(1, 2)) == 2


def test_full_disk_keeps_committed_rows(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, ids(0, 1000))
    # A limit on the size of files stands in for the full disk: the write stops half-way, then fails.
    script = f"""
import resource, numpy as np
from pathlib import Path
from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.level_file import Header, RowType, write_rows
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
header = Header(0, RowType.UINT32, 1, 0, {MODEL!r}, bytes(16))
path = Path({str(path)!r})
try:
    write_rows(path, header, 1000, np.arange(1000, 100_000, dtype=np.uint32))
except StoreError as error:
    print(error)
assert path.stat().st_size == 64 + 4 * 1000  # the half-written rows give their space back
assert write_rows(path, header, 1000, np.arange(1000, 1010, dtype=np.uint32)) == 1010
resource.setrlimit(resource.RLIMIT_FSIZE, (30, 8192))
try:
    write_rows(path.with_name("LOD1.ctx"), header, 0, np.arange(1, dtype=np.uint32))
except StoreError as error:
    print(error)
assert path.with_name("LOD1.ctx").stat().st_size == 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "LOD0.ctx" in done.stdout
    assert "1000 committed rows are intact" in done.stdout
    assert "free disk space" in done.stdout
    assert "LOD1.ctx" in done.stdout
    np.testing.assert_array_equal(contents(path), ids(0, 1010))
    assert path.stat().st_size == 64 + 4 * 1010


def test_unwritable_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="check the rights"):
        write_rows(tmp_path / "file" / "LOD0.ctx", TOKENS, 0, ids(0, 1))
