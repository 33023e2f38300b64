import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from files.levels import GIST, GISTS, MODEL, die_at_write, flip, forked, made
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError
from megacontext_vllm.tree.files.columns import column_path
from megacontext_vllm.tree.files.header import MIXED, Header
from megacontext_vllm.tree.files.level_file import LevelWriter, open_again
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.files.mend import cut_level
from megacontext_vllm.tree.gists import (
    append_gists,
    begin_refresh,
    finish,
    gist_versions,
    known_versions,
    mark_damaged,
    newest,
    replace_gists,
    stale,
)
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans

OTHER, THIRD = bytes([9] * 16), bytes([8] * 16)


def header(level: int = 1, net: bytes = GIST) -> Header:
    return replace(GISTS, level=level, gist_fingerprint=net)


def path(folder: Path, level: int = 1) -> Path:
    return folder / f"LOD{level}.ctx"


def grow(folder: Path, count: int, level: int = 1, net: bytes = GIST) -> None:
    start = len(stale(folder, level)) if path(folder, level).exists() else 0
    rows = made(header(level), start, start + count, salt=net[0])
    assert append_gists(path(folder, level), header(level, net), start, rows) == start + count


def renew(folder: Path, start: int, stop: int, level: int = 1, net: bytes = OTHER) -> None:
    replace_gists(path(folder, level), header(level, net), start, made(header(level), start, stop, salt=net[0]))


def versions(folder: Path, level: int = 1) -> list[int]:
    return gist_versions(folder, level, 0, len(stale(folder, level))).tolist()


def net_of_file(folder: Path, level: int = 1) -> bytes:
    reader = LevelReader(path(folder, level))
    reader.close()
    return reader.header.gist_fingerprint


def rows(folder: Path, level: int = 1) -> NDArray[np.uint16]:
    reader = LevelReader(path(folder, level))
    try:
        return reader.read(0, reader.count)
    finally:
        reader.close()


def test_a_tree_of_one_net_needs_no_further_file(tmp_path: Path) -> None:
    grow(tmp_path, 40)
    grow(tmp_path, 1, level=2)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["LOD1.crc", "LOD1.ctx", "LOD2.crc", "LOD2.ctx"]
    assert known_versions(tmp_path) == [GIST] and newest(tmp_path) == GIST
    assert versions(tmp_path) == [1] * 40
    assert not stale(tmp_path, 1).any()
    assert finish(tmp_path)


def test_the_states_of_a_refresh(tmp_path: Path) -> None:
    grow(tmp_path, 70)
    grow(tmp_path, 2, level=2)
    begin_refresh(tmp_path, GIST)
    assert net_of_file(tmp_path) == GIST  # it is so already
    begin_refresh(tmp_path, OTHER)
    begin_refresh(tmp_path, OTHER)
    assert json.loads((tmp_path / "gists.json").read_text()) == {
        "format_version": 1,
        "versions": [GIST.hex(), OTHER.hex()],
    }
    assert net_of_file(tmp_path) == net_of_file(tmp_path, 2) == MIXED
    assert versions(tmp_path) == [1] * 70 and stale(tmp_path, 1).all()
    renew(tmp_path, 0, 40)
    assert versions(tmp_path) == [2] * 40 + [1] * 30
    grow(tmp_path, 5, net=OTHER)
    grow(tmp_path, 5, net=GIST)  # of a worker that has not heard of the new net yet
    assert versions(tmp_path) == [2] * 40 + [1] * 30 + [2] * 5 + [1] * 5
    assert not finish(tmp_path)
    renew(tmp_path, 40, 80)
    assert not finish(tmp_path)  # level 2
    assert net_of_file(tmp_path) == OTHER and net_of_file(tmp_path, 2) == MIXED
    assert not column_path(tmp_path, 1, "version").exists()
    renew(tmp_path, 0, 2, level=2)
    assert finish(tmp_path)
    assert net_of_file(tmp_path, 2) == OTHER
    assert versions(tmp_path) == [2] * 80
    grow(tmp_path, 3, net=GIST)  # it still has not
    assert versions(tmp_path) == [2] * 80 + [1] * 3
    renew(tmp_path, 80, 83)
    assert finish(tmp_path)
    np.testing.assert_array_equal(rows(tmp_path), made(header(), 0, 83, salt=OTHER[0]))


def test_back_to_an_earlier_net_keeps_the_gists_that_are_of_it(tmp_path: Path) -> None:
    grow(tmp_path, 40)
    begin_refresh(tmp_path, OTHER)
    renew(tmp_path, 0, 32)
    begin_refresh(tmp_path, GIST)
    assert known_versions(tmp_path) == [GIST, OTHER, GIST]
    np.testing.assert_array_equal(stale(tmp_path, 1), np.arange(40) < 32)
    renew(tmp_path, 0, 32, net=GIST)
    assert finish(tmp_path) and net_of_file(tmp_path) == GIST
    np.testing.assert_array_equal(rows(tmp_path), made(header(), 0, 40, salt=GIST[0]))


def test_damaged_gists_are_made_again_by_page(tmp_path: Path) -> None:
    grow(tmp_path, 100)
    flip(path(tmp_path), 8 * (64 + 40 * 48))
    with pytest.raises(CorruptTreeError):
        rows(tmp_path)
    mark_damaged(tmp_path, 1, 40, 41)
    assert versions(tmp_path) == [1] * 32 + [0] * 32 + [1] * 36
    assert not finish(tmp_path)
    mark_damaged(tmp_path, 1, 10, 10)
    assert versions(tmp_path).count(0) == 32
    renew(tmp_path, 32, 64, net=GIST)
    assert finish(tmp_path) and net_of_file(tmp_path) == GIST
    np.testing.assert_array_equal(rows(tmp_path), made(header(), 0, 100, salt=GIST[0]))
    begin_refresh(tmp_path, OTHER)
    mark_damaged(tmp_path, 1, 96, 100)
    assert versions(tmp_path) == [1] * 96 + [0] * 4
    with pytest.raises(IndexError):
        mark_damaged(tmp_path, 1, 99, 101)
    with pytest.raises(IndexError):
        gist_versions(tmp_path, 1, 99, 101)
    with pytest.raises(IndexError):
        gist_versions(tmp_path, 7, 0, 1)


def test_a_net_nobody_announced_and_another_model_are_refused(tmp_path: Path) -> None:
    grow(tmp_path, 40)
    for attempt in (lambda: grow(tmp_path, 1, net=OTHER), lambda: renew(tmp_path, 0, 1)):
        with pytest.raises(FingerprintMismatchError, match="refresh"):
            attempt()
    begin_refresh(tmp_path, OTHER)
    with pytest.raises(FingerprintMismatchError, match="refresh"):
        grow(tmp_path, 1, net=THIRD)
    foreign = replace(header(), model_fingerprint=MODEL[::-1])
    with pytest.raises(FingerprintMismatchError, match="another model"):
        append_gists(path(tmp_path), foreign, 40, made(foreign, 40, 41))
    with pytest.raises(StoreError, match="only grows"):
        append_gists(path(tmp_path), header(net=OTHER), 41, made(header(), 41, 42))
    with pytest.raises(StoreError, match="cannot be replaced"):
        replace_gists(path(tmp_path), header(net=OTHER), 39, made(header(), 39, 41))
    assert versions(tmp_path) == [1] * 40
    np.testing.assert_array_equal(rows(tmp_path), made(header(), 0, 40, salt=GIST[0]))


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "list", "short fingerprint"])
def test_without_its_list_the_numbers_mean_nothing(tmp_path: Path, damage: str) -> None:
    grow(tmp_path, 40)
    grow(tmp_path, 1, level=2)
    begin_refresh(tmp_path, OTHER)
    renew(tmp_path, 0, 20)
    renew(tmp_path, 0, 1, level=2)
    damaged = {"empty": "", "text": "{", "list": "[]", "short fingerprint": '{"format_version": 1, "versions": ["00"]}'}
    (tmp_path / "gists.json").unlink()
    if damage != "missing":
        (tmp_path / "gists.json").write_text(damaged[damage])
    assert versions(tmp_path) == [0] * 40
    assert not finish(tmp_path)
    with pytest.raises(FingerprintMismatchError):
        renew(tmp_path, 0, 1, net=THIRD)
    begin_refresh(tmp_path, THIRD)  # its version is 1, which meant another net before
    assert known_versions(tmp_path) == [THIRD]
    assert versions(tmp_path) == [0] * 40
    renew(tmp_path, 0, 40, net=THIRD)
    assert versions(tmp_path) == [1] * 40
    renew(tmp_path, 0, 1, level=2, net=THIRD)
    assert finish(tmp_path)


def test_a_list_of_a_later_release_is_left_alone(tmp_path: Path) -> None:
    grow(tmp_path, 40)
    (tmp_path / "gists.json").write_text('{"format_version": 2, "versions": {}}')
    for attempt in (lambda: begin_refresh(tmp_path, OTHER), lambda: stale(tmp_path, 1), lambda: finish(tmp_path)):
        with pytest.raises(CorruptTreeError, match="format version 2"):
            attempt()
    assert (tmp_path / "gists.json").read_text() == '{"format_version": 2, "versions": {}}'


@pytest.mark.parametrize("damage", ["missing", "header", "short", "nonsense"])
def test_a_damaged_column_means_more_work_only(tmp_path: Path, damage: str) -> None:
    grow(tmp_path, 40)
    begin_refresh(tmp_path, OTHER)
    renew(tmp_path, 0, 40)
    column = column_path(tmp_path, 1, "version")
    if damage == "missing":
        column.unlink()
    elif damage == "header":
        flip(column, 100)
    elif damage == "short":
        with column.open("r+b") as file:
            file.truncate(64 + 2 * 20 + 1)
    else:
        with column.open("r+b") as file:
            file.seek(64 + 2 * 20)
            file.write(b"\xff" * 40)
    assert versions(tmp_path) == ([2] * 20 if damage in ("short", "nonsense") else [0] * 20) + [0] * 20
    assert not finish(tmp_path)
    renew(tmp_path, 0, 40)
    assert finish(tmp_path)


def test_versions_of_rows_that_were_cut_off_are_not_those_of_the_next(tmp_path: Path) -> None:
    """A kill between the commit of a row and its version must leave 0, whatever was there before."""
    grow(tmp_path, 40)
    begin_refresh(tmp_path, OTHER)
    renew(tmp_path, 0, 40)
    cut_level(path(tmp_path), 32)

    def work() -> None:
        with open_again(path(tmp_path)) as writer:  # what append_gists of an old net does, up to the commit
            assert writer.header.gist_fingerprint == MIXED
        die_at_write(4)  # version 0, rows, checksum, count; then the version
        grow(tmp_path, 8, net=GIST)

    status = os.waitpid(forked(work), 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert versions(tmp_path) == [2] * 32 + [0] * 8


@pytest.mark.parametrize("write", range(4))
def test_a_column_left_over_says_nothing_of_other_rows(tmp_path: Path, write: int) -> None:
    """Not even if a kill falls between the filling of the column and the header that makes it count."""
    grow(tmp_path, 40)
    begin_refresh(tmp_path, OTHER)
    renew(tmp_path, 0, 40)
    left_over = column_path(tmp_path, 1, "version").read_bytes()
    for name in ("LOD1.ctx", "LOD1.crc", "LOD1.journal"):
        (tmp_path / name).unlink()
    grow(tmp_path, 40, net=GIST)
    assert column_path(tmp_path, 1, "version").read_bytes() == left_over
    assert versions(tmp_path) == [1] * 40

    def work() -> None:
        die_at_write(write)
        begin_refresh(tmp_path, OTHER)

    os.waitpid(forked(work), 0)
    assert versions(tmp_path) == [1] * 40
    assert stale(tmp_path, 1).all()


def test_a_level_file_being_written_is_waited_for(tmp_path: Path) -> None:
    grow(tmp_path, 40)
    writer = LevelWriter(path(tmp_path), header())
    closing = threading.Thread(target=lambda: (time.sleep(0.2), writer.close()))
    closing.start()
    begin_refresh(tmp_path, OTHER)
    closing.join()
    assert net_of_file(tmp_path) == MIXED


def test_the_gist_of_a_sealed_span_is_neither_stale_nor_new(tmp_path: Path) -> None:
    grow(tmp_path, 96)
    grow(tmp_path, 3, level=2)
    SealedSpans([SealedSpan(2, 1, "compacted")]).save(tmp_path)
    begin_refresh(tmp_path, OTHER)
    np.testing.assert_array_equal(stale(tmp_path, 1), [True] * 32 + [False] * 32 + [True] * 32)
    np.testing.assert_array_equal(stale(tmp_path, 2), [True, False, True])
    for start, stop, level in ((0, 32, 1), (64, 96, 1), (0, 1, 2), (2, 3, 2)):
        renew(tmp_path, start, stop, level)
    assert finish(tmp_path)
    assert net_of_file(tmp_path) == OTHER  # holes are of no net
    assert net_of_file(tmp_path, 2) == MIXED
    assert versions(tmp_path, 2) == [2, 1, 2]


def test_an_empty_level_file_is_no_level_yet(tmp_path: Path) -> None:
    grow(tmp_path, 40)
    path(tmp_path, 2).touch()
    begin_refresh(tmp_path, OTHER)
    renew(tmp_path, 0, 40)
    assert finish(tmp_path)
    grow(tmp_path, 1, level=2, net=OTHER)
    assert finish(tmp_path)
