"""What the tests of level files share: headers, rows that tell where and when they were written, forked children."""

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_reader import LevelReader

MODEL, GIST = bytes(range(16)), bytes(range(100, 116))
TOKENS = Header(0, RowType.UINT32, 1, 0, MODEL, bytes(16))
GISTS = Header(1, RowType.BFLOAT16, 24, 0, MODEL, GIST)
"""Raw bits, so that any of them are equal to themselves (NaN is not)."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def made(header: Header, start: int, stop: int, salt: int = 0) -> NDArray[Any]:
    """Rows ``[start, stop)`` as ``[n, dim]`` (LOD0: ``[n]``); a value depends on row, column and ``salt``."""
    row, column = np.arange(start, stop, dtype=np.uint64)[:, None], np.arange(header.dim, dtype=np.uint64)
    mixed = (row * np.uint64(header.dim) + column + np.uint64(salt << 32) + np.uint64(1)) * _FACTOR
    rows = (mixed >> np.uint64(24)).astype(header.dtype.numpy)
    return rows[:, 0] if header.level == 0 else rows


def contents(path: Path) -> NDArray[Any]:
    """Everything committed, by checked reading."""
    reader = LevelReader(path)
    try:
        return reader.read(0, reader.count)
    finally:
        reader.close()


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file; bit 0 is the lowest of byte 0."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def forked(work: Callable[..., None], *arguments: Any) -> int:
    """Run ``work(*arguments)`` in a child process; returns its id. Its exit status says whether ``work`` raised."""
    child = os.fork()
    if child:
        return child
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def finished(child: int) -> None:
    """Wait for a child, which must not have failed."""
    assert os.waitpid(child, 0)[1] == 0, "the child failed; its traceback is in the captured output"


def killed(child: int, after_seconds: float = 0.0) -> None:
    """Kill a child -9; it must have been alive until then."""
    time.sleep(after_seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), f"the child ended by itself, with status {status}"


@contextmanager
def held_by_child(take: Callable[[], object]) -> Iterator[None]:
    """A child holds what ``take`` returns for the length of the block; then it is killed."""
    output, input_ = os.pipe()

    def work() -> None:
        held = take()
        os.write(input_, b"!")
        signal.pause()
        del held

    child = forked(work)
    os.close(input_)
    try:
        with os.fdopen(output, "rb") as file:
            assert file.read(1) == b"!", "the child failed; its traceback is in the captured output"
        yield
    finally:
        killed(child)


def drained(fd: int) -> bytes:
    """Everything that a dead child wrote into a pipe; closes it."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def die_at_write(number: int, piece: int = 1 << 20) -> None:
    """In a child: be killed just before the ``number``-th (from 0) write or cut of a file from now on.

    ``piece``: most bytes that one write moves, so that a kill can fall within a large one.
    """
    left = number
    real_write, real_cut = os.pwrite, os.ftruncate

    def step() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def write(fd: int, data: Any, offset: int) -> int:
        step()
        return real_write(fd, memoryview(data)[:piece], offset)

    def cut(fd: int, size: int) -> None:
        step()
        real_cut(fd, size)

    os.pwrite, os.ftruncate = write, cut
