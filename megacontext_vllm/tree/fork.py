"""Fork: a new tree that starts as a copy of another one's prefix, gists included."""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.files.header import HEADER_BYTES, Header
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.files.mend import remove_level
from megacontext_vllm.tree.nodes import depth, num_nodes
from megacontext_vllm.tree.tree import TOKENS, MegaContextTree

logger = logging.getLogger(__name__)

_CHUNK = 8 << 20
_CANNOT_COPY_IN_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


def copy_prefix(source: MegaContextTree, target: MegaContextTree, length: int) -> None:
    """Fill the empty tree ``target`` with tokens ``[0, length)`` of ``source`` and the gists of its complete nodes.

    Gists that are missing or damaged in ``source`` are left out: they are derived and will be rebuilt. Raises
    StoreError when the tokens cannot be read or written.
    """
    assert target.writable
    assert target.length == 0
    assert length <= source.length
    _copy(source.path / TOKENS, length, lambda _: target)
    for level in range(1, depth(length) + 1):
        count = min(source.gist_count(level), num_nodes(length, level))
        if count == 0:
            continue
        try:
            copy_rows(source.gist_path(level), target.gist_path(level), count)
        except StoreError as error:
            logger.warning("gists of level %d are not taken over and will be rebuilt: %s", level, error)
            remove_level(target.gist_path(level))


class _Target(Protocol):
    """What rows are copied into: an empty tree, or the writer of an empty level file."""

    def fill(self, count: int, copy: Callable[[int], None], pages: NDArray[np.uint32], tail: int) -> None: ...


def copy_rows(source: Path, target: Path, count: int) -> None:
    """Copy the first ``count`` committed rows of one level file to a new or empty one.

    Committed rows never move, so ``source`` may grow meanwhile. Raises StoreError.
    """
    with ExitStack() as stack:
        _copy(source, count, lambda header: stack.enter_context(LevelWriter(target, header)))


def _copy(source: Path, count: int, target: Callable[[Header], _Target]) -> None:
    try:
        reader = LevelReader(source)
    except OSError as error:
        raise StoreError(f"cannot read {source}: {error.strerror}") from error
    try:
        header = replace(reader.header, count=0)
        if reader.count < count:
            raise CorruptTreeError(f"{source} has {reader.count} rows, {count} were expected")
        # The checksums are copied too, so that damage in the source is not taken for the truth here.
        pages, tail = reader.checksums(count)
        with open(source, "rb") as file:

            def copy(fd: int) -> None:
                _copy_bytes(file.fileno(), fd, HEADER_BYTES, header.file_bytes(count))

            target(header).fill(count, copy, pages, tail)
    except OSError as error:
        raise StoreError(f"cannot read {source}: {error.strerror}") from error
    finally:
        reader.close()


def _copy_bytes(source: int, target: int, offset: int, end: int) -> None:
    """Copy bytes ``[offset, end)`` to the same place; inside the kernel, or as shared extents, where that works."""
    in_kernel = hasattr(os, "copy_file_range")
    while offset < end:
        if in_kernel:
            try:
                copied = os.copy_file_range(source, target, end - offset, offset, offset)
            except OSError as error:
                if error.errno not in _CANNOT_COPY_IN_KERNEL:
                    raise
                in_kernel = False
                continue
            in_kernel = copied > 0  # some file systems answer 0 instead of an error
        else:
            copied = os.pwrite(target, os.pread(source, min(_CHUNK, end - offset), offset), offset)
            if copied == 0:
                raise OSError(errno.EIO, "the source of the copy ended early")
        offset += copied
