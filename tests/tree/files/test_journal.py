"""Overwriting gists: each page is as it was or as it is now, for readers and after a kill at any point."""

import os
import random
import struct
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files.levels import GISTS, contents, die_at_write, drained, finished, forked, killed, made

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.journal import journal_path, parse_journal, write_journal
from megacontext_vllm.tree.files.level_file import LevelWriter, write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader

WIDE = replace(GISTS, dim=512)
"""A page of 32 KiB: more than one page of memory, so that a copy of it can be caught half-way."""
COUNT, START, STOP = 170, 5, 167
"""Six pages; the first and the last are overwritten in part, and the last is unfinished."""


def test_overwritten_rows_and_their_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, GISTS, 0, made(GISTS, 0, COUNT))
    expected = made(GISTS, 0, COUNT)
    for salt, (start, stop) in enumerate([(0, 1), (31, 33), (32, 64), (160, 170), (5, 5), (0, 170), (169, 170)], 1):
        with LevelWriter(path, GISTS) as writer:
            writer.overwrite(start, made(GISTS, start, stop, salt))
        expected[start:stop] = made(GISTS, start, stop, salt)
        np.testing.assert_array_equal(contents(path), expected)
    with LevelWriter(path, GISTS) as writer:
        with pytest.raises(StoreError, match="cannot be replaced"):
            writer.overwrite(169, made(GISTS, 169, 171))
        writer.append(made(GISTS, COUNT, 200))  # the checksum of the unfinished page goes on from the new rows
        np.testing.assert_array_equal(contents(path), np.concatenate([expected, made(GISTS, COUNT, 200)]))
    assert journal_path(path).stat().st_size == 0


def overwrite_for_ever(path: Path, acknowledge: int) -> None:
    """Overwrite ``[START, STOP)`` with rows of salt 1, 2, ...; each is acknowledged when it is done."""
    with LevelWriter(path, WIDE) as writer:
        reader = LevelReader(path)
        salt = int(reader.read(START, START + 1)[0, 0])  # modulo 2**16, like every salt here
        reader.close()
        while True:
            salt += 1
            writer.overwrite(START, salted(salt)[START:STOP])
            os.write(acknowledge, struct.pack("<I", salt))


def salted(salt: int) -> np.ndarray:
    """``[COUNT, dim]``: the salt in every value that is overwritten, mixed with its row; salt 0 around those."""
    rows = np.broadcast_to(np.arange(COUNT, dtype=np.uint16)[:, None] * 97, (COUNT, WIDE.dim)).copy()
    rows[START:STOP] += np.uint16(salt & 0xFFFF)
    rows[START:STOP] -= np.arange(COUNT, dtype=np.uint16)[START:STOP, None] * 97
    return rows


def salt_of(page: np.ndarray, first: int) -> int:
    """Which overwrite a page of rows from ``first`` on shows; fails if it is a mix."""
    at = max(START - first, 0)
    salt = int(page[at, 0])
    np.testing.assert_array_equal(page, salted(salt)[first : first + len(page)], f"a mix in page {first // 32}")
    return salt


def page_salts(path: Path) -> list[int]:
    rows = contents(path)
    assert len(rows) == COUNT
    return [salt_of(rows[first : first + 32], first) for first in range(0, COUNT, 32)]


def test_readers_see_old_or_new_pages(tmp_path: Path) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, WIDE, 0, salted(0))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    child = forked(overwrite_for_ever, path, nowhere)
    try:
        reader = LevelReader(path)
        until, seen, rounds = time.monotonic() + 5, set(), 0
        while time.monotonic() < until:
            first = random.randrange(6) * 32
            seen.add(salt_of(reader.read(first, min(first + 32, COUNT)), first))
            rows = reader.read(0, COUNT)
            seen |= {salt_of(rows[at : at + 32], at) for at in range(0, COUNT, 32)}
            rounds += 1
        reader.close()
    finally:
        killed(child)
        os.close(nowhere)
    assert len(seen) > 20 and rounds > 20, "the two have hardly met"


def check_after_kill(path: Path, acknowledged: int) -> int:
    """Old or new pages before the next writer comes, one version of them all after it; returns which."""
    before = page_salts(path)
    assert set(before) <= {acknowledged, acknowledged + 1}
    LevelWriter(path, WIDE).close()
    after = page_salts(path)
    assert len(set(after)) == 1
    assert after[0] >= max(before)
    assert not journal_path(path).exists() or journal_path(path).stat().st_size == 0
    return after[0]


def test_kill_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, WIDE, 0, salted(0))
    done, moved = 0, 0
    for _ in range(80):
        output, input_ = os.pipe()
        child = forked(overwrite_for_ever, path, input_)
        os.close(input_)
        first = os.read(output, 4)
        killed(child, random.random() * 0.004)
        acknowledged = struct.unpack("<I", (first + drained(output))[-4:])[0]
        assert acknowledged > done
        done = check_after_kill(path, acknowledged)
        moved += done > acknowledged
    assert moved, "no kill fell between a journal and its acknowledgement"


def overwrite_and_die(path: Path, number: int, piece: int, rows: np.ndarray) -> None:
    with LevelWriter(path, WIDE) as writer:
        die_at_write(number, piece)
        writer.overwrite(START, rows)


@pytest.mark.parametrize("piece", [1 << 20, 20_001])
def test_kill_before_each_write(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, WIDE, 0, salted(0))
    outcomes = []
    for number in range(1000):
        old = outcomes[-1] if outcomes else 0
        child = forked(overwrite_and_die, path, number, piece, salted(old + 1)[START:STOP])
        status = os.waitpid(child, 0)[1]
        outcomes.append(check_after_kill(path, old))
        if status == 0:  # it had fewer writes than that
            break
        assert os.WIFSIGNALED(status)
    changed = [b > a for a, b in zip([0, *outcomes], outcomes)]
    assert changed == sorted(changed)  # done from the moment the journal was whole, and not before
    assert not changed[0] and changed[-1] and number >= 5


def test_kill_before_each_write_of_the_next_writer(tmp_path: Path) -> None:
    """The work is done again from the start when its repetition is killed too."""
    path = tmp_path / "LOD1.ctx"
    write_rows(path, WIDE, 0, salted(0))

    def again(number: int) -> None:
        die_at_write(number, 50_001)
        LevelWriter(path, WIDE).close()

    assert os.WIFSIGNALED(os.waitpid(forked(overwrite_and_die, path, 4, 1 << 20, salted(1)[START:STOP]), 0)[1])
    assert journal_path(path).stat().st_size
    for number in range(1000):
        child = forked(again, number)
        status = os.waitpid(child, 0)[1]
        assert set(page_salts(path)) == {1}  # readers take what is missing from the journal
        if status == 0:
            break
    assert number >= 5
    assert check_after_kill(path, 1) == 1


def test_a_journal_that_is_not_whole_is_no_journal(tmp_path: Path) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, GISTS, 0, made(GISTS, 0, 64))
    fd = os.open(journal_path(path), os.O_RDWR | os.O_CREAT)
    write_journal(fd, 1, 32, 32, memoryview(made(GISTS, 32, 64, 1).tobytes()))
    os.close(fd)
    whole = journal_path(path).read_bytes()
    found = parse_journal(whole, GISTS)
    assert found is not None
    assert found == (32, 32, made(GISTS, 32, 64, 1).tobytes())
    assert parse_journal(whole, replace(GISTS, level=2)) is None
    for size in range(0, len(whole), 7):
        journal_path(path).write_bytes(whole[:size])
        LevelWriter(path, GISTS).close()
        assert journal_path(path).stat().st_size == 0
    np.testing.assert_array_equal(contents(path), made(GISTS, 0, 64))
    journal_path(path).write_bytes(whole)
    finished(forked(lambda: LevelWriter(path, GISTS).close()))
    np.testing.assert_array_equal(contents(path)[32:], made(GISTS, 32, 64, 1))
