"""Bring to an end what a process that died had begun: holes not punched yet, archives of what never was sealed.

Whatever was killed, a token is either readable, or under a sealed span whose archive is whole on the disk. What is left
to do follows from ``sealed.json`` alone: rows below its spans are holes, and an archive that no span names belongs to a
compaction that did not happen, or was restored.
"""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree.curation.dropped import DroppedFile
from megacontext_vllm.tree.curation.log import curating
from megacontext_vllm.tree.curation.places import (
    DRAFT_SUFFIX,
    MARKER_SUFFIX,
    ROWS_SUFFIX,
    TREE,
    archive_folder,
    who_is,
)
from megacontext_vllm.tree.files.header import level_path
from megacontext_vllm.tree.files.holes import punch
from megacontext_vllm.tree.files.level_reader import LevelReader, read_header
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.tree import TOKENS

logger = logging.getLogger(__name__)


def finish_pending(store: Path, folder: Path) -> None:
    """Finish what was interrupted in the tree in ``folder``; nothing happens if nothing was.

    Raises TreeInUseError, UnknownTreeError, CorruptTreeError, StoreError.
    """
    namespace, tree_id = who_is(store, folder)
    with curating(store), claim(folder):
        finish(folder, archive_folder(store, namespace, tree_id))


def finish(folder: Path, archive: Path) -> None:
    """The same, for whoever has claimed the tree and curates the store."""
    try:
        sealed = SealedSpans.of(folder)
        punch_holes(folder, sealed)
        _clear(folder, archive, sealed)
    except OSError as error:
        raise StoreError(f"cannot finish the curation of {folder}: {error.strerror}") from error


@contextmanager
def unchanged_times(fd: int) -> Iterator[None]:
    """Curation is no use of a tree: keep the file's time of change, which tells when the tree last grew."""
    times = os.fstat(fd)
    yield
    os.utime(fd, ns=(times.st_atime_ns, times.st_mtime_ns))


def punch_holes(folder: Path, sealed: SealedSpans, near: Iterable[SealedSpan] | None = None) -> None:
    """Make holes of the rows below compacted spans. ``near``: only around these. Raises CorruptTreeError, OSError."""
    wanted = None if near is None else SealedSpans(near)
    for level in range(max((item.level for item in sealed), default=0)):
        runs: list[tuple[int, int]] = []
        for item in sealed:
            if item.kind != "compacted" or item.level <= level:
                continue
            if runs and runs[-1][1] == item.start:  # as one, so that the blocks that they share come back too
                runs[-1] = (runs[-1][0], item.stop)
            else:
                runs.append((item.start, item.stop))
        if wanted is not None:
            runs = [run for run in runs if wanted.overlapping(*run)]
        if not runs:
            continue
        path, width = level_path(folder, level), BLOCK**level
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # gists may have been dropped as a whole
            continue
        try:
            header = read_header(fd, path)
            with unchanged_times(fd):
                for start, stop in runs:
                    first, last = (min(at // width, header.count) for at in (start, stop))
                    punch(fd, header.file_bytes(first), (last - first) * header.row_bytes)
        finally:
            os.close(fd)


def _clear(folder: Path, archive: Path, sealed: SealedSpans) -> None:
    """Remove what is in the archive for nothing."""
    if not archive.is_dir():
        return
    named = {item.action for item in sealed}
    for file in sorted(archive.iterdir()):
        if file.suffix == DRAFT_SUFFIX or (file.suffix == MARKER_SUFFIX and not (archive / TREE).exists()):
            file.unlink(missing_ok=True)
        elif file.suffix == ROWS_SUFFIX and file.stem not in named:
            if _is_in_the_tree(file, folder):
                file.unlink(missing_ok=True)
            else:
                logger.warning("%s belongs to no sealed span, but has tokens that the tree lacks; it is kept", file)


def _is_in_the_tree(file: Path, folder: Path) -> bool:
    """Whether the tree has all tokens of an archive: if ``sealed.json`` was lost, it has not."""
    try:
        with DroppedFile(file) as dropped, closing(LevelReader(folder / TOKENS)) as reader:
            for start, tokens, _ in dropped.rows(0):
                if start + len(tokens) > reader.count:
                    return False
                if not np.array_equal(reader.read(start, start + len(tokens)), tokens):
                    return False
        return True
    except CorruptTreeError as error:
        logger.warning("whether %s is needed cannot be said: %s", file, error)
        return False
