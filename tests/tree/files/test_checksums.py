import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files.levels import GISTS, TOKENS, contents, flip, made
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files import level_reader
from megacontext_vllm.tree.files.checksums import page_rows
from megacontext_vllm.tree.files.header import HEADER_BYTES, Header
from megacontext_vllm.tree.files.level_file import LevelWriter, write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.files.mend import cut_level, rebuild_checksums

HEADERS = pytest.mark.parametrize("header", [TOKENS, GISTS], ids=["LOD0", "LOD1"])


@pytest.fixture(autouse=True, scope="module")
def impatient() -> Iterator[None]:
    """Nobody writes meanwhile, so a page that differs now will differ for ever: do not wait for it to get better."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(level_reader, "_PAUSE_SECONDS", 0.0)
        patch.setattr(level_reader, "_TRIES", 3)
        yield


def sizes(page: int) -> st.SearchStrategy[int]:
    around = [k * page + d for k in (0, 1, 2, 3) for d in (-1, 0, 1) if k * page + d > 0]
    return st.sampled_from(around) | st.integers(1, 3 * page)


def forget_count(path: Path, header_bytes: bytes) -> None:
    """What a crash before the commit leaves: the rows and checksums of an append, and the header from before it."""
    with path.open("r+b") as file:
        file.write(header_bytes)


@HEADERS
@given(data=st.data())
@settings(max_examples=120, deadline=None)
def test_committed_rows_survive_any_appends_and_crashes(header: Header, data: st.DataObject) -> None:
    steps = data.draw(
        st.lists(st.tuples(st.sampled_from(["append", "reopen", "crash"]), sizes(page_rows(header.level))), max_size=12)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"LOD{header.level}.ctx"
        parts: list[NDArray[Any]] = [made(header, 0, 0)]
        count = 0
        writer = LevelWriter(path, header)
        reader = LevelReader(path)  # stays open over all of it, mostly with an old count
        for salt, (step, size) in enumerate(steps):
            rows = made(header, count, count + size, salt)
            if step == "append":
                assert writer.append(rows) == count + size
                count += size
                parts.append(rows)
            elif step == "crash":
                before = path.read_bytes()[:HEADER_BYTES]
                writer.append(rows)
                writer.close()
                forget_count(path, before)
                np.testing.assert_array_equal(contents(path), np.concatenate(parts))
            if step != "append":
                writer.close()
                writer = LevelWriter(path, header)
                assert writer.count == count
                assert path.stat().st_size == header.file_bytes(count)
            expected = np.concatenate(parts)
            known = reader.count  # reading may find out that there are more
            np.testing.assert_array_equal(reader.read(0, known), expected[:known])
            if salt % 2:
                assert reader.refresh() == count
        writer.close()
        reader.refresh()
        np.testing.assert_array_equal(reader.read(0, count), np.concatenate(parts))
        assert reader.bad_pages(0, reader.page_count) == []
        start = data.draw(st.integers(0, count))
        stop = data.draw(st.integers(start, count))
        np.testing.assert_array_equal(reader.read(start, stop), np.concatenate(parts)[start:stop])
        reader.close()


@HEADERS
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_is_found_in_its_page(header: Header, data: st.DataObject) -> None:
    page = page_rows(header.level)
    count = data.draw(sizes(page))
    bit = data.draw(st.integers(0, count * header.row_bytes * 8 - 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"LOD{header.level}.ctx"
        rows = made(header, 0, count)
        for at in range(0, count, page - 3):
            write_rows(path, header, at, rows[at : at + page - 3])
        flip(path, HEADER_BYTES * 8 + bit)
        bad = bit // 8 // header.row_bytes // page
        reader = LevelReader(path)
        assert reader.bad_pages(0, reader.page_count) == [bad]
        with pytest.raises(CorruptTreeError, match=f"rows {bad * page} to {min((bad + 1) * page, count)} of"):
            reader.read(0, count)
        np.testing.assert_array_equal(reader.read(0, bad * page), rows[: bad * page])
        if (bad + 1) * page < count:
            np.testing.assert_array_equal(reader.read((bad + 1) * page, count), rows[(bad + 1) * page :])
        else:  # whoever would build on the damaged page is told
            if count % page:
                with pytest.raises(CorruptTreeError):
                    LevelWriter(path, header)
        reader.close()


@HEADERS
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_sidecar_never_gives_wrong_rows(header: Header, data: st.DataObject) -> None:
    page = page_rows(header.level)
    first, second = data.draw(sizes(page)), data.draw(sizes(page))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"LOD{header.level}.ctx"
        sidecar = path.with_suffix(".crc")
        rows = made(header, 0, first + second)
        write_rows(path, header, 0, rows[:first])
        write_rows(path, header, first, rows[first:])
        damage = data.draw(st.sampled_from(["missing", "truncated", "flipped", "garbage"]))
        if damage == "missing":
            sidecar.unlink()
        elif damage == "truncated":
            os.truncate(sidecar, data.draw(st.integers(0, sidecar.stat().st_size)))
        elif damage == "flipped":
            flip(sidecar, data.draw(st.integers(0, sidecar.stat().st_size * 8 - 1)))
        else:
            sidecar.write_bytes(data.draw(st.binary(max_size=100)))
        reader = LevelReader(path)
        try:
            np.testing.assert_array_equal(reader.read(0, len(rows)), rows)
        except CorruptTreeError:
            assert reader.bad_pages(0, reader.page_count)
        reader.close()
        try:
            with LevelWriter(path, header) as writer:
                writer.append(made(header, len(rows), len(rows) + page))
        except CorruptTreeError:
            pass
        assert path.read_bytes()[HEADER_BYTES:][: len(rows) * header.row_bytes] == rows.tobytes()
        rebuild_checksums(path)
        np.testing.assert_array_equal(contents(path)[: len(rows)], rows)


@HEADERS
def test_every_bit_of_a_sidecar(tmp_path: Path, header: Header) -> None:
    page = page_rows(header.level)
    path = tmp_path / f"LOD{header.level}.ctx"
    rows = made(header, 0, 2 * page + 5)
    write_rows(path, header, 0, rows[: page + 1])
    write_rows(path, header, page + 1, rows[page + 1 :])
    reader = LevelReader(path)
    size = path.with_suffix(".crc").stat().st_size
    assert size == 64 + 2 * 4
    for bit in range(8 * size):
        flip(path.with_suffix(".crc"), bit)
        bad = reader.bad_pages(0, 3)
        assert bad == ([(bit // 8 - 64) // 4] if bit >= 64 * 8 else bad)
        assert bad in ([], [0], [1], [2])
        for at in range(3):
            if at not in bad:
                stop = min((at + 1) * page, len(rows))
                np.testing.assert_array_equal(reader.read(at * page, stop), rows[at * page : stop])
        flip(path.with_suffix(".crc"), bit)
    np.testing.assert_array_equal(reader.read(0, len(rows)), rows)
    reader.close()


@HEADERS
@pytest.mark.parametrize("keep", [0, 1, 31, 32, 33, 1023, 1024, 1025, 5000])
def test_a_level_that_was_cut_goes_on_from_there(tmp_path: Path, header: Header, keep: int) -> None:
    path = tmp_path / f"LOD{header.level}.ctx"
    write_rows(path, header, 0, made(header, 0, 2100))
    kept = min(keep, 2100)
    assert cut_level(path, keep) == kept
    np.testing.assert_array_equal(contents(path), made(header, 0, kept))
    write_rows(path, header, kept, made(header, kept, kept + 40, 7))
    np.testing.assert_array_equal(contents(path)[kept:], made(header, kept, kept + 40, 7))
    os.truncate(path, header.file_bytes(kept) + 5)  # the disk lost the end, within a row
    with pytest.raises(StoreError):
        rebuild_checksums(path)
    assert cut_level(path, 1 << 40) == kept + 5 // header.row_bytes
    assert len(contents(path)) == kept + 5 // header.row_bytes
