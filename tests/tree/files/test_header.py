import os
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files.levels import GIST, GISTS, MODEL, TOKENS, flip, made

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError
from megacontext_vllm.tree.files.header import HEADER_BYTES, Header, RowType, unpack_count
from megacontext_vllm.tree.files.level_file import LevelWriter, open_again, write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count

COUNT_BITS = [*range(16 * 8, 24 * 8), *range(60 * 8, 64 * 8)]
"""The row count and its checksum: all that ``read_count`` looks at."""


def signed(data: bytearray) -> bytes:
    """A header with both checksums made to match."""
    data[56:60] = zlib.crc32(data[0:16] + data[24:56]).to_bytes(4, "little")
    data[60:64] = zlib.crc32(data[16:24]).to_bytes(4, "little")
    return bytes(data)


def test_header_bytes_at_each_documented_offset() -> None:
    data = Header(3, RowType.BFLOAT16, 4096, 0x0102030405060708, MODEL, GIST).pack()
    assert len(data) == HEADER_BYTES == 64
    assert data[0:4] == b"MCTX"
    assert data[4:6] == b"\x02\x00"  # format version
    assert data[6:8] == b"\x03\x00"  # level
    assert data[8:10] == b"\x20\x00"  # block size
    assert data[10:12] == b"\x02\x00"  # dtype code
    assert data[12:16] == b"\x00\x10\x00\x00"  # dim
    assert data[16:24] == b"\x08\x07\x06\x05\x04\x03\x02\x01"  # row count
    assert data[24:40] == MODEL
    assert data[40:56] == GIST
    assert data[56:60] == zlib.crc32(data[0:16] + data[24:56]).to_bytes(4, "little")
    assert data[60:64] == zlib.crc32(data[16:24]).to_bytes(4, "little")


@pytest.mark.parametrize("dtype", [RowType.FLOAT16, RowType.BFLOAT16, RowType.FLOAT32])
def test_header_round_trip(dtype: RowType) -> None:
    header = Header(1, dtype, 7, 12, MODEL, GIST)
    assert Header.unpack(header.pack()) == header
    assert header.pack()[16:] == header.pack_count()
    assert unpack_count(header.pack_count()) == 12
    assert header.file_bytes(12) == 64 + 12 * 7 * dtype.numpy.itemsize


def test_a_layout_nobody_knows_is_refused_though_its_checksums_hold() -> None:
    for offset, value in ((4, 3), (8, 16), (10, 9), (12, 0)):
        data = bytearray(GISTS.pack())
        data[offset] = value
        with pytest.raises(CorruptTreeError):
            Header.unpack(signed(data))
    tokens = bytearray(TOKENS.pack())
    tokens[12] = 2  # two tokens per row
    with pytest.raises(CorruptTreeError, match="dim 2"):
        Header.unpack(signed(tokens))
    for size in (0, 4, 63, 65):
        with pytest.raises(CorruptTreeError, match="bytes"):
            Header.unpack(GISTS.pack().ljust(65, b"\0")[:size])


def test_more_rows_than_a_file_can_hold() -> None:
    data = bytearray(GISTS.pack())
    data[16:24] = struct.pack("<Q", 1 << 60)
    with pytest.raises(CorruptTreeError, match="more than a file can hold"):
        Header.unpack(signed(data))


@pytest.mark.parametrize("header", [TOKENS, GISTS], ids=["LOD0", "LOD1"])
def test_every_flipped_bit_on_disk_is_found(tmp_path: Path, header: Header) -> None:
    path = tmp_path / f"LOD{header.level}.ctx"
    rows = made(header, 0, 1100)
    write_rows(path, header, 0, rows)
    whole = path.read_bytes()
    for bit in range(8 * HEADER_BYTES):
        flip(path, bit)
        damaged = path.read_bytes()
        assert damaged != whole
        with pytest.raises((CorruptTreeError, FingerprintMismatchError)):
            LevelReader(path)
        with pytest.raises((CorruptTreeError, FingerprintMismatchError)):
            LevelWriter(path, header)
        with pytest.raises((CorruptTreeError, FingerprintMismatchError)):
            open_again(path)
        if bit in COUNT_BITS:
            with pytest.raises(CorruptTreeError, match=path.name):
                read_count(path)
        else:
            assert read_count(path) == 1100
        assert path.read_bytes() == damaged  # nobody made it worse
        flip(path, bit)
    assert path.read_bytes() == whole
    with LevelWriter(path, header) as writer:
        assert writer.count == 1100


def test_a_flipped_bit_is_found_by_an_open_reader(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, made(TOKENS, 0, 10))
    reader = LevelReader(path)
    for bit in COUNT_BITS:
        flip(path, bit)
        with pytest.raises(CorruptTreeError, match=r"LOD0\.ctx"):
            reader.refresh()
        flip(path, bit)
    assert reader.refresh() == 10
    reader.close()


@pytest.mark.parametrize("version", [0, 1, 3, 0xFFFF])
def test_another_format_version_says_what_to_do(tmp_path: Path, version: int) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, made(TOKENS, 0, 10))
    data = bytearray(path.read_bytes())
    data[4:6] = version.to_bytes(2, "little")
    if version == 1:
        data[60:64] = bytes(4)  # as that version left them
    path.write_bytes(bytes(data) if version == 1 else signed(data[:64]) + bytes(data[64:]))
    before = path.read_bytes()
    for attempt in (LevelReader, open_again, lambda file: LevelWriter(file, TOKENS)):
        with pytest.raises(CorruptTreeError, match=rf"LOD0\.ctx: format version {version}; .*[Uu]se the release"):
            attempt(path)
    assert path.read_bytes() == before


def test_another_model_or_gistnet_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, GISTS, 0, made(GISTS, 0, 70))
    before = path.read_bytes()
    for other in (replace(GISTS, model_fingerprint=GIST), replace(GISTS, gist_fingerprint=MODEL)):
        with pytest.raises(FingerprintMismatchError, match=r"LOD1\.ctx"):
            LevelWriter(path, other)
        with pytest.raises(FingerprintMismatchError):
            write_rows(path, other, 70, made(GISTS, 70, 71))
    assert path.read_bytes() == before


def test_a_count_beyond_the_file_is_refused_though_its_checksum_holds(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, made(TOKENS, 0, 10))
    reader = LevelReader(path)
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, replace(TOKENS, count=11).pack_count(), 16)
    os.close(fd)
    for attempt in (LevelReader, open_again, lambda file: LevelWriter(file, TOKENS)):
        with pytest.raises(CorruptTreeError, match="too few for the 11 rows"):
            attempt(path)
    assert reader.refresh() == 11
    with pytest.raises(StoreError):
        reader.read(0, 11)
    with pytest.raises(StoreError):
        reader.rows(0, 11)
    reader.close()
    salvaged = LevelReader.salvage(path)
    assert (salvaged.count, salvaged.header.count) == (10, 11)
    np.testing.assert_array_equal(salvaged.rows(0, 10), made(TOKENS, 0, 10))
    salvaged.close()
