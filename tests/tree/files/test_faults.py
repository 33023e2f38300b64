"""Disks that are full or broken, writes that stop early, and somebody else at the same files."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from files.levels import GISTS, TOKENS, contents, finished, forked, held_by_child, made

from megacontext_vllm.errors import StoreError, TreeLockedError
from megacontext_vllm.tree.files.header import Header
from megacontext_vllm.tree.files.journal import journal_path
from megacontext_vllm.tree.files.level_file import LevelWriter, write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count
from megacontext_vllm.tree.files.mend import cut_level, rebuild_checksums

HEADERS = pytest.mark.parametrize("header", [TOKENS, GISTS], ids=["LOD0", "LOD1"])

ON_A_FULL_DISK = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from files.test_faults import fill_the_disk
fill_the_disk(Path(sys.argv[1]))
"""


def fill_the_disk(folder: Path) -> None:
    """Append to two levels until the disk of ``folder`` is full, make room, go on."""
    ballast = [folder / "ballast1", folder / "ballast2"]
    for file in ballast:
        file.write_bytes(bytes(200_000))
    counts = {}
    for header, size in ((TOKENS, 10_007), (GISTS, 501)):
        path = folder / f"LOD{header.level}.ctx"
        with LevelWriter(path, header) as writer:
            while size:  # to the last row
                try:
                    writer.append(made(header, writer.count, writer.count + size))
                except StoreError as error:
                    assert re.search("No space left.*committed rows are intact; free disk space", str(error))  # noqa: PT017
                    assert path.stat().st_size == header.file_bytes(writer.count)  # the rest gave its space back
                    np.testing.assert_array_equal(contents(path), made(header, 0, writer.count))
                    size //= 2
            counts[header.level] = writer.count
        if not header.level:
            with pytest.raises(StoreError, match="No space left"):
                LevelWriter(folder / "LOD1.ctx", GISTS)
            assert read_count(folder / "LOD1.ctx") == 0
            ballast.pop().unlink()
    assert min(counts.values()) > 1000
    with LevelWriter(folder / "LOD1.ctx", GISTS) as writer, pytest.raises(StoreError, match="No space left"):
        writer.overwrite(0, made(GISTS, 0, counts[1], 1))  # no room for its journal
    np.testing.assert_array_equal(contents(folder / "LOD1.ctx"), made(GISTS, 0, counts[1]))
    ballast.pop().unlink()
    for header in (TOKENS, GISTS):
        path = folder / f"LOD{header.level}.ctx"
        with LevelWriter(path, header) as writer:
            assert writer.count == counts[header.level]
            writer.append(made(header, writer.count, writer.count + 100))
        np.testing.assert_array_equal(contents(path), made(header, 0, counts[header.level] + 100))
    with LevelWriter(folder / "LOD1.ctx", GISTS) as writer:
        writer.overwrite(0, made(GISTS, 0, 40, 1))
    np.testing.assert_array_equal(contents(folder / "LOD1.ctx")[:40], made(GISTS, 0, 40, 1))


def test_full_disk(tmp_path: Path) -> None:
    """A real one: a file system of 1 MiB in memory, mounted where only the child sees it."""
    mount = 'mount -t tmpfs -o size=1m tmpfs "$1"'
    unshared = ["unshare", "-rm", "sh", "-c"]
    try:
        allowed = subprocess.run([*unshared, mount, "sh", str(tmp_path)], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no `unshare` here")
    if allowed.returncode:
        pytest.skip(f"mounting in a user namespace is not permitted here: {allowed.stderr.strip()}")
    command = f'{mount} && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        [*unshared, command, "sh", str(tmp_path), sys.executable, ON_A_FULL_DISK],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@HEADERS
def test_a_limit_on_file_sizes(tmp_path: Path, header: Header) -> None:
    """The write stops half-way, then fails."""
    path = tmp_path / f"LOD{header.level}.ctx"
    write_rows(path, header, 0, made(header, 0, 100))
    size = header.file_bytes(100)

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1001, resource.RLIM_INFINITY))
        with LevelWriter(path, header) as writer:
            with pytest.raises(StoreError, match=rf"{path.name}.*Its 100 committed rows are intact; free disk space"):
                writer.append(made(header, 100, 100_000))
            assert path.stat().st_size == size
            assert writer.append(made(header, 100, 110)) == 110
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, resource.RLIM_INFINITY))  # not even a header
        with pytest.raises(StoreError):
            write_rows(tmp_path / "b.ctx", header, 0, made(header, 0, 1))
        assert (tmp_path / "b.ctx").stat().st_size == 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert write_rows(tmp_path / "b.ctx", header, 0, made(header, 0, 1)) == 1

    finished(forked(work))
    np.testing.assert_array_equal(contents(path), made(header, 0, 110))


@HEADERS
def test_writes_that_move_seven_bytes(tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"LOD{header.level}.ctx"
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, memoryview(data)[:7], offset))
    expected = made(header, 0, 1100)
    with LevelWriter(path, header) as writer:
        writer.append(expected[:700])
        writer.append(expected[700:])
        if header.level:
            writer.overwrite(30, made(header, 30, 40, 1))
            expected[30:40] = made(header, 30, 40, 1)
    np.testing.assert_array_equal(contents(path), expected)


@HEADERS
def test_a_disk_that_cannot_be_read(tmp_path: Path, header: Header, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"LOD{header.level}.ctx"
    write_rows(path, header, 0, made(header, 0, 3000))
    reader = LevelReader(path)
    page = reader.page_rows
    bad = (header.file_bytes(page), header.file_bytes(2 * page))  # page 1
    real = os.pread

    def broken(fd: int, size: int, offset: int) -> bytes:
        if size > 64 and offset < bad[1] and offset + size > bad[0] and fd == reader._fd:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        with pytest.raises(StoreError, match=rf"cannot read rows {page} to {2 * page} of .*{path.name}"):
            reader.read(0, 3000)
        assert reader.bad_pages(0, reader.page_count) == [1]
        np.testing.assert_array_equal(reader.read(0, page), made(header, 0, page))
        np.testing.assert_array_equal(reader.read(2 * page, 3000), made(header, 2 * page, 3000))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", _no_disk)
        for attempt in (lambda: reader.read(0, 1), lambda: read_count(path), lambda: LevelWriter(path, header)):
            with pytest.raises(StoreError, match=path.name):
                attempt()
        for mend in (rebuild_checksums, lambda file: cut_level(file, 10)):
            with pytest.raises(StoreError, match=path.name):
                mend(path)
    np.testing.assert_array_equal(reader.read(0, 3000), made(header, 0, 3000))
    reader.close()


def _no_disk(fd: int, size: int, offset: int) -> bytes:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("failing", range(6))
def test_an_overwrite_whose_disk_fails_is_finished_or_never_was(
    tmp_path: Path, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "LOD1.ctx"
    write_rows(path, GISTS, 0, made(GISTS, 0, 100))
    writer, calls, real = LevelWriter(path, GISTS), [0], os.pwrite

    def write(fd: int, data: bytes, offset: int) -> int:
        calls[0] += 1
        if calls[0] > failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        if failing < 5:  # journal rows, journal head, rows, checksums, checksum of the unfinished page
            with pytest.raises(StoreError, match=r"LOD1\.ctx.*Input/output error"):
                writer.overwrite(20, made(GISTS, 20, 99, 1))
            with pytest.raises(StoreError):
                writer.append(made(GISTS, 100, 101))  # it let go of the file
        else:
            writer.overwrite(20, made(GISTS, 20, 99, 1))
    writer.close()
    LevelWriter(path, GISTS).close()
    expected = made(GISTS, 0, 100)
    if failing >= 2:
        expected[20:99] = made(GISTS, 20, 99, 1)
    np.testing.assert_array_equal(contents(path), expected)
    assert journal_path(path).stat().st_size == 0


def test_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "LOD0.ctx"
    write_rows(path, TOKENS, 0, made(TOKENS, 0, 10))
    attempts = (LevelWriter, lambda file, _: rebuild_checksums(file), lambda file, _: cut_level(file, 0))
    with held_by_child(lambda: LevelWriter(path, TOKENS)):
        for attempt in attempts:
            with pytest.raises(TreeLockedError, match=r"LOD0\.ctx"):
                attempt(path, TOKENS)
        np.testing.assert_array_equal(contents(path), made(TOKENS, 0, 10))
    assert write_rows(path, TOKENS, 10, made(TOKENS, 10, 20)) == 20  # a dead writer holds nothing
