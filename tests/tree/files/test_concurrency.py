"""One writer and four readers, each a process of its own: nobody ever sees a row that is torn, or not yet there."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
from files.levels import GISTS, TOKENS, finished, forked, made

from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count

SECONDS = float(os.environ.get("MEGACONTEXT_TEST_SECONDS", "60"))
HEADERS = (TOKENS, GISTS)
MOST_ROWS = 20_000_000


def level_path(folder: Path, level: int) -> Path:
    return folder / f"LOD{level}.ctx"


def write(folder: Path, until: float) -> None:
    dice = random.Random(0)
    writers = [LevelWriter(level_path(folder, header.level), header) for header in HEADERS]
    while time.monotonic() < until:
        for writer in writers:
            size = dice.choice((1, 3, 32, 100, 1000, 1024, 5000)) if writer.header.level == 0 else dice.randrange(1, 80)
            if writer.count < MOST_ROWS:
                writer.append(made(writer.header, writer.count, writer.count + size))
        if dice.random() < 0.01:  # a new process does the same
            for writer in writers:
                writer.close()
            writers = [LevelWriter(level_path(folder, header.level), header) for header in HEADERS]
    for writer in writers:
        assert writer.count > 1000
        writer.close()


def read(folder: Path, until: float, seed: int) -> None:
    dice = random.Random(seed)
    readers = [LevelReader(level_path(folder, header.level)) for header in HEADERS]
    rounds, grown = 0, 0
    while time.monotonic() < until:
        for at, reader in enumerate(readers):
            known = reader.count
            if dice.random() < 0.5:
                assert reader.refresh() >= known
            elif dice.random() < 0.1:
                reader.close()
                reader = readers[at] = LevelReader(reader.path)
            assert reader.count >= known
            grown += reader.count > known
            count = reader.count
            start = max(count - dice.randrange(3000), 0) if dice.random() < 0.7 else dice.randrange(count)
            stop = min(start + dice.randrange(4000), count)
            expected = made(reader.header, start, stop)
            np.testing.assert_array_equal(reader.read(start, stop), expected)
            if dice.random() < 0.5:
                view = reader.rows(start, stop)
                np.testing.assert_array_equal(view, expected)
                assert read_count(reader.path) >= count
            rounds += 1
    assert rounds > 100 and grown > 20, "the reader has hardly met the writer"


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_no_torn_row_is_ever_seen(tmp_path: Path) -> None:
    for header in HEADERS:
        with LevelWriter(level_path(tmp_path, header.level), header) as writer:
            writer.append(made(header, 0, 10))
    until = time.monotonic() + SECONDS
    children = [forked(write, tmp_path, until), *(forked(read, tmp_path, until, seed) for seed in range(4))]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert statuses == [0] * 5, "a child failed; its traceback is in the captured output"
    finished(forked(check_all, tmp_path))


def check_all(folder: Path) -> None:
    for header in HEADERS:
        reader = LevelReader(level_path(folder, header.level))
        for start in range(0, reader.count, 1 << 20):
            stop = min(start + (1 << 20), reader.count)
            np.testing.assert_array_equal(reader.read(start, stop), made(header, start, stop))
        assert reader.count > 1000
