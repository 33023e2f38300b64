"""Damaged bytes through every parser of tree files: a refusal that is meant, or what the bytes really say."""

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from files.levels import GISTS, TOKENS, made

from megacontext_vllm.errors import CorruptTreeError
from megacontext_vllm.tree.files.checksums import Checksums
from megacontext_vllm.tree.files.header import COUNT_OFFSET, Header, RowType, unpack_count
from megacontext_vllm.tree.files.journal import parse_journal, write_journal

INPUTS = 40_000
"""Per parser; there are three."""


def mutated(whole: bytes, dice: random.Random) -> bytes:
    """One to four random changes: bits, bytes, runs, sizes."""
    data = bytearray(whole)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(data)) if data else 0
        match dice.randrange(6):
            case 0 if data:
                data[at] ^= 1 << dice.randrange(8)
            case 1 if data:
                data[at] = dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))
            case 2:
                data[at : at + 8] = struct.pack("<Q", dice.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
            case 3:
                del data[at:]
            case 4:
                data[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 5:
                data[at : at + dice.randrange(1, 40)] = dice.randbytes(dice.randrange(1, 40))
    return bytes(data)


def inputs(whole: list[bytes], sign: Callable[[bytearray], None]) -> Iterator[bytes]:
    """Mutations; every second one gets matching checksums, so that what lies behind those is reached too."""
    dice = random.Random(0)
    for number in range(INPUTS):
        data = bytearray(mutated(dice.choice(whole), dice))
        if number % 2:
            sign(data)
        yield bytes(data)


def sign_header(data: bytearray) -> None:
    if len(data) >= 64:
        data[56:60] = struct.pack("<I", zlib.crc32(data[0:16] + data[24:56]))
        data[60:64] = struct.pack("<I", zlib.crc32(data[16:24]))
        del data[64:]


def test_headers() -> None:
    whole = [TOKENS.pack(), GISTS.pack(), Header(3, RowType.FLOAT32, 4096, 12345, bytes(16), bytes(16)).pack()]
    accepted = 0
    for data in inputs(whole, sign_header):
        try:
            header = Header.unpack(data)
        except CorruptTreeError:
            pass
        else:
            assert header.pack() == data  # it says what the bytes say, and nothing else
            assert header.file_bytes(header.count) < 1 << 63
            accepted += 1
        count = unpack_count(data[COUNT_OFFSET:])
        assert count is None or data[16:24] == count.to_bytes(8, "little")
    assert INPUTS // 20 < accepted < INPUTS


def sign_journal(data: bytearray) -> None:
    if len(data) >= 32:
        data[24:28] = struct.pack("<I", zlib.crc32(data[32:]))
        data[28:32] = struct.pack("<I", zlib.crc32(data[:28]))


def test_journals() -> None:
    fd = os.memfd_create("journal")
    write_journal(fd, 1, 64, 3, memoryview(made(GISTS, 64, 67).tobytes()))
    whole = os.pread(fd, 1 << 20, 0)
    os.close(fd)
    accepted = 0
    for data in inputs([whole], sign_journal):
        found = parse_journal(data, GISTS)
        if found is None:
            continue
        start, count, rows = found
        assert len(rows) == count * GISTS.row_bytes
        assert data[:24] == struct.pack("<4sIQQ", b"MCTJ", 1, start, count)
        assert rows == data[32 : 32 + len(rows)]
        assert struct.unpack_from("<II", data, 24) == (zlib.crc32(rows), zlib.crc32(data[:28]))
        accepted += 1
    assert INPUTS // 100 < accepted < INPUTS


def sign_sidecar(data: bytearray) -> None:
    for at in (0, 16, 32):
        if len(data) >= at + 16:
            data[at + 12 : at + 16] = struct.pack("<I", zlib.crc32(data[at : at + 12]))


@pytest.mark.parametrize("header", [TOKENS, GISTS], ids=["LOD0", "LOD1"])
def test_sidecars(header: Header) -> None:
    fd = os.memfd_create("sidecar")
    sums = Checksums(fd, header.level, header.row_bytes)
    sums.reset()
    rows, tail = made(header, 0, 5 * sums.rows + 7), 0
    ends = [0, sums.rows + 3, 3 * sums.rows + 1, 5 * sums.rows + 5, 5 * sums.rows + 7]
    for start, stop in pairwise(ends):
        tail = sums.append(start, tail, memoryview(rows[start:stop].tobytes()))
    whole = os.pread(fd, 1 << 16, 0)
    assert len(whole) == 64 + 5 * 4
    found_slots = invalid = 0
    for data in inputs([whole], sign_sidecar):
        os.ftruncate(fd, 0)
        os.pwrite(fd, data, 0)
        invalid += not sums.is_valid()
        assert sums.is_valid() == (data[:16] == whole[:16])
        slots = [data[at : at + 16] for at in (16, 32)]
        for count in ends:
            known = sums.tail(count)
            if count == 0:
                assert known == 0
            elif known is not None:
                said = struct.pack("<QI", count, known)
                assert said + struct.pack("<I", zlib.crc32(said)) in slots
                found_slots += 1
        pages = sums.pages(1, 9)
        assert len(pages) <= 8
        assert pages.dtype == np.uint32
        assert pages.tobytes() == data[68 : 68 + 4 * len(pages)]
    os.close(fd)
    assert found_slots > INPUTS // 10
    assert INPUTS // 100 < invalid < INPUTS
