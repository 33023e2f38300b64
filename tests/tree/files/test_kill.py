"""kill -9 of the writer: what was acknowledged is there, and nothing else changed."""

import os
import random
import struct
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from files.levels import GISTS, TOKENS, contents, die_at_write, drained, forked, killed, made
from numpy.typing import NDArray

from megacontext_vllm.tree.files.header import Header
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count

KILLS = 320
KILLS_PER_FOLDER = 40
HEADERS = (TOKENS, GISTS)
SIZES = (1, 2, 31, 32, 33, 100, 1023, 1024, 1025, 3000)


def level_path(folder: Path, level: int) -> Path:
    return folder / f"LOD{level}.ctx"


def append_for_ever(folder: Path, salt: int, acknowledge: int) -> None:
    """Append to both levels, in random amounts; every append is acknowledged as (level, count)."""
    dice = random.Random(salt)
    with ExitStack() as stack:
        writers = [stack.enter_context(LevelWriter(level_path(folder, header.level), header)) for header in HEADERS]
        os.write(acknowledge, struct.pack("<II", 2, 0))  # both are open
        while True:
            for writer in writers:
                size = dice.choice(SIZES) if writer.header.level == 0 else dice.randrange(1, 100)
                rows = made(writer.header, writer.count, writer.count + size, salt)
                os.write(acknowledge, struct.pack("<II", writer.header.level, writer.append(rows)))


def read_for_ever(folder: Path) -> None:
    """Load: checked reads of all that is there, which must never fail."""
    while True:
        for header in HEADERS:
            if read_count(level_path(folder, header.level)):
                contents(level_path(folder, header.level))


def acknowledged(data: bytes, counts: list[int]) -> list[int]:
    """The last count of each level that a child told of."""
    told = list(counts)
    for level, count in struct.iter_unpack("<II", data[: len(data) // 8 * 8]):
        if level < 2:
            told[level] = count
    return told


class Expected:
    """What should be in the folder: who wrote which rows."""

    def __init__(self) -> None:
        self.rows: list[NDArray[Any]] = [made(header, 0, 0) for header in HEADERS]

    @property
    def counts(self) -> list[int]:
        return [len(rows) for rows in self.rows]

    def check(self, folder: Path, told: list[int], salt: int) -> None:
        """``told``: acknowledged counts. One more append per level may be there, committed and never acknowledged."""
        for header in HEADERS:
            path = level_path(folder, header.level)
            before, known = len(self.rows[header.level]), told[header.level]
            reader = LevelReader(path)
            assert known <= reader.count <= known + max(SIZES)
            assert reader.header == replace(header, count=reader.count)
            new = made(header, before, reader.count, salt)
            self.rows[header.level] = np.concatenate([self.rows[header.level], new])
            np.testing.assert_array_equal(reader.read(0, reader.count), self.rows[header.level])
            if reader.count:
                np.testing.assert_array_equal(reader.rows(0, reader.count), self.rows[header.level])
            reader.close()
        names = {path.name for path in folder.iterdir()}
        assert names == {"LOD0.ctx", "LOD0.crc", "LOD1.ctx", "LOD1.crc"}


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path: Path) -> None:
    salt = unfinished = acknowledgements = 0
    for number in range(KILLS // KILLS_PER_FOLDER):
        folder = tmp_path / str(number)
        folder.mkdir()
        expected = Expected()
        load = forked(read_for_ever, folder)
        try:
            for _ in range(KILLS_PER_FOLDER):
                salt += 1
                output, input_ = os.pipe()
                child = forked(append_for_ever, folder, salt, input_)
                os.close(input_)
                opened = os.read(output, 8)
                assert opened, "the child could not open the files; its traceback is in the captured output"
                killed(child, random.random() * 0.012)
                data = opened + drained(output)
                acknowledgements += len(data) // 8 - 1
                expected.check(folder, acknowledged(data, expected.counts), salt)
                sizes = [level_path(folder, header.level).stat().st_size for header in HEADERS]
                unfinished += sizes != [header.file_bytes(n) for header, n in zip(HEADERS, expected.counts)]
        finally:
            killed(load)
    assert acknowledgements > 10 * KILLS, "too few appends for the kills to meet any"
    assert unfinished, "no kill fell between rows and their commit"


def test_kill_while_opening(tmp_path: Path) -> None:
    """From the fork on: before the files exist, between their creation and their first row."""
    for salt in range(1, 61):
        folder = tmp_path / str(salt)
        folder.mkdir()
        output, input_ = os.pipe()
        child = forked(append_for_ever, folder, salt, input_)
        os.close(input_)
        killed(child, random.random() * 0.004)
        told = acknowledged(drained(output), [0, 0])
        for header in HEADERS:
            LevelWriter(level_path(folder, header.level), header).close()
        Expected().check(folder, told, salt)


def append_and_die(path: Path, header: Header, number: int, rows: NDArray[Any]) -> None:
    die_at_write(number, 5000)
    with LevelWriter(path, header) as writer:
        writer.append(rows)


@pytest.mark.parametrize("header", HEADERS, ids=["LOD0", "LOD1"])
@pytest.mark.parametrize("start", [0, 20, 1024, 1030])
@pytest.mark.parametrize("size", [5, 12, 1024, 2100])
def test_kill_before_each_write(tmp_path: Path, header: Header, start: int, size: int) -> None:
    """Creation included: every state of the disk that a kill can leave, with 5 kB as the most that one write moves."""
    for number in range(1000):
        path = tmp_path / f"{number}" / f"LOD{header.level}.ctx"
        path.parent.mkdir()
        if start:
            with LevelWriter(path, header) as writer:
                writer.append(made(header, 0, start // 2))
                writer.append(made(header, start // 2, start))

        status = os.waitpid(forked(append_and_die, path, header, number, made(header, start, start + size, 1)), 0)[1]
        kept = read_count(path)
        assert kept == (start + size if status == 0 else start)
        rows = np.concatenate([made(header, 0, start), made(header, start, kept, 1)])
        if path.stat().st_size:
            reader = LevelReader(path)
            np.testing.assert_array_equal(reader.read(0, kept) if kept else rows, rows)
            reader.close()
        with LevelWriter(path, header) as writer:  # and it goes on from there, with other rows than those that died
            writer.append(made(header, kept, kept + 2 * size, 2))
            writer.append(made(header, kept + 2 * size, kept + 2 * size + 1, 2))
        np.testing.assert_array_equal(
            contents(path), np.concatenate([rows, made(header, kept, kept + 2 * size + 1, 2)])
        )
        if status == 0:
            break
        assert os.WIFSIGNALED(status)
    assert number >= 2
