import fcntl
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files.levels import GIST, MODEL, TOKENS, contents
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError, TreeLockedError
from megacontext_vllm.tree.files.header import MIXED, Header, RowType
from megacontext_vllm.tree.files.level_file import LevelWriter, open_again, write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count

GISTS = Header(2, RowType.FLOAT16, 8, 0, MODEL, GIST)


def ids(start: int, stop: int) -> NDArray[np.uint32]:
    return np.arange(start, stop, dtype=np.uint32)


def test_rows_are_where_the_format_says(tmp_path: Path) -> None:
    path = tmp_path / "LOD2.ctx"
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float16)
    assert write_rows(path, GISTS, 0, rows[:2]) == 2
    assert write_rows(path, GISTS, 2, rows[2:]) == 5
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


def test_unwritable_place_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="check the rights"):
        write_rows(tmp_path / "file" / "LOD0.ctx", TOKENS, 0, ids(0, 1))


def test_a_writer_keeps_its_file_until_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    with LevelWriter(path, TOKENS) as writer:
        assert writer.count == 0
        assert writer.append(ids(0, 40)) == writer.count == 40
        assert writer.append(ids(40, 2000), start=40) == 2000
        with pytest.raises(StoreError, match="2000 rows are committed"):
            writer.append(ids(0, 1), start=40)
        with pytest.raises(TreeLockedError):
            LevelWriter(path, TOKENS)
        with pytest.raises(TreeLockedError):
            open_again(path)
        np.testing.assert_array_equal(contents(path), ids(0, 2000))
    writer.close()
    with pytest.raises(StoreError):
        writer.append(ids(0, 1))
    with LevelWriter(path, TOKENS) as writer:
        assert writer.count == 2000


def test_open_again_takes_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "LOD2.ctx"
    with pytest.raises(StoreError, match=r"LOD2\.ctx"):
        open_again(path)
    assert not path.exists()
    write_rows(path, GISTS, 0, np.ones((3, 8), np.float16))
    with open_again(path) as writer:
        assert writer.header == replace(GISTS, count=3)
        assert writer.append(np.ones((1, 8), np.float16)) == 4
    path.write_bytes(b"")
    with pytest.raises(CorruptTreeError):
        open_again(path)


def test_another_gistnet_or_several(tmp_path: Path) -> None:
    path = tmp_path / "LOD2.ctx"
    with LevelWriter(path, GISTS) as writer:
        writer.append(np.ones((3, 8), np.float16))
        writer.set_gist_fingerprint(MODEL)
        writer.append(np.ones((2, 8), np.float16))
    with pytest.raises(FingerprintMismatchError, match="GistNet"):
        LevelWriter(path, GISTS)
    LevelWriter(path, replace(GISTS, gist_fingerprint=MIXED)).close()  # whoever says so does not mind
    with LevelWriter(path, replace(GISTS, gist_fingerprint=MODEL)) as writer:
        writer.set_gist_fingerprint(MIXED)
    with LevelWriter(path, GISTS) as writer:
        assert writer.header == replace(GISTS, gist_fingerprint=MIXED, count=5)


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 1025, 4000])
def test_a_file_filled_with_the_rows_of_another(tmp_path: Path, count: int) -> None:
    source, path = tmp_path / "a" / "LOD0.ctx", tmp_path / "b" / "LOD0.ctx"
    source.parent.mkdir()
    path.parent.mkdir()
    write_rows(source, TOKENS, 0, ids(7, 4007))
    reader = LevelReader(source)
    pages, tail = reader.checksums(count)
    with LevelWriter(path, TOKENS) as writer:
        writer.fill(count, lambda fd: None if not count else write_at(fd, reader.rows(0, count)), pages, tail)
        assert writer.append(ids(count + 7, 5007)) == 5000
    np.testing.assert_array_equal(contents(path), ids(7, 5007))
    write_rows(path, TOKENS, 5000, ids(0, 1))  # its unfinished page is what its checksum says
    reader.close()


def write_at(fd: int, rows: NDArray[np.uint32]) -> None:
    assert os.pwrite(fd, rows.tobytes(), 64) == rows.nbytes
