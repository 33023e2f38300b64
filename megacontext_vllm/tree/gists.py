"""Which GistNet made which gist, and the writing of gists. Plain functions on a tree folder, for any process.

The version of a gist is the place of its net in ``gists.json`` (``gist_nets.py``) plus one, 0 where it must be made
again. The header of a level file has the fingerprint of the net of all its rows; it is ``MIXED`` while there are rows
of several, or rows to be made again. Only while it is does the column ``LODn.version.col`` decide. A tree that only
ever saw one net has neither file.

Whatever is killed at whatever point, a version in the column is that of the net that made the row, or 0: it is set to 0
before a row changes and to the net's version after. (A power cut may keep the column and lose the row, unless the fsync
policy is ``always``.)

A reader that shows gists asks ``gist_versions`` and takes a gist of version 0 as not there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, StoreError, TreeLockedError
from megacontext_vllm.tree.files.checksums import page_rows
from megacontext_vllm.tree.files.columns import Column, column_path
from megacontext_vllm.tree.files.durability import NEVER, Durability
from megacontext_vllm.tree.files.header import MIXED, Header, level_path
from megacontext_vllm.tree.files.level_file import LevelWriter, open_again
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count
from megacontext_vllm.tree.gist_nets import MOST_NETS, locked, read_nets, version_of, write_nets
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.tree import MegaContextTree, gist_levels

VERSION_COLUMN = "version"
_PATIENCE_SECONDS, _PAUSE_SECONDS = 5.0, 0.002


def known_versions(folder: Path) -> list[bytes]:
    """Fingerprints of the nets the tree has seen, 16 bytes each, newest last.

    Without ``gists.json`` they are those in the level files, that of the lowest level last: the others follow from it.
    Raises CorruptTreeError (a level file, or the ``gists.json`` of a later release), StoreError.
    """
    found = read_nets(folder)
    return _fingerprints(folder) if found is None else found


def newest(folder: Path) -> bytes | None:
    """The net that all gists of the tree shall be of; None in a tree without gists. Raises like ``known_versions``."""
    known = known_versions(folder)
    return known[-1] if known else None


def gist_versions(folder: Path, level: int, start: int, stop: int) -> NDArray[np.uint16]:
    """Versions of gists ``[start, stop)`` of ``level``: uint16 ``[n]``, 0 for one that must be made again.

    Raises IndexError beyond the committed gists, CorruptTreeError, StoreError.
    """
    header = level_header(level_path(folder, level))
    count = header.count if header else 0
    if not 0 <= start <= stop <= count:
        raise IndexError(f"gists [{start}, {stop}) of level {level} of {folder}, which has {count}")
    if header is None or header.gist_fingerprint != MIXED:
        version = version_of(known_versions(folder), header.gist_fingerprint) if header else 0
        return np.full(stop - start, version, np.uint16)
    known = read_nets(folder)
    if known is None:  # lost: without it the numbers in the column mean nothing
        return np.zeros(stop - start, np.uint16)
    with Column(folder, level, VERSION_COLUMN, np.uint16) as column:
        versions = column.read(start, stop)
    versions[versions > len(known)] = 0
    return versions


def made_by(fingerprint: bytes, path: Path, gists: NDArray[np.int64]) -> bool:
    """Whether an engine with the net of this fingerprint may show all of ``gists`` of a level file, ascending.

    It may show its own, and those of a tree that is being refreshed with it. Raises IndexError beyond the committed
    gists, CorruptTreeError, StoreError.
    """
    folder, header = path.parent, level_header(path)
    if header is None or header.gist_fingerprint not in (MIXED, fingerprint):
        return False
    if header.gist_fingerprint == fingerprint or newest(folder) == fingerprint:
        return True
    version = version_of(known_versions(folder), fingerprint)
    first, last = int(gists[0]), int(gists[-1])
    return version > 0 and bool((gist_versions(folder, header.level, first, last + 1)[gists - first] == version).all())


def stale(folder: Path, level: int, sealed: SealedSpans | None = None) -> NDArray[np.bool_]:
    """Which gists of ``level`` shall be made again: bool ``[committed gists]``.

    Not those under a sealed span, which are gone, nor the one of the span itself, which cannot be made again.
    ``sealed``: the tree's, if it is at hand. Raises CorruptTreeError, StoreError.
    """
    result = _outdated(folder, level, read_count(level_path(folder, level)))
    for item in SealedSpans.of(folder) if sealed is None else sealed:
        if item.level >= level:
            result[item.start // BLOCK**level : item.stop // BLOCK**level] = False
    return result


def _outdated(folder: Path, level: int, count: int) -> NDArray[np.bool_]:
    """Which of the first ``count`` gists are not of the newest net, sealed or not."""
    known = known_versions(folder)
    fresh = np.array([False, *(item == known[-1] for item in known)])
    versions = gist_versions(folder, level, 0, count)
    versions[versions >= len(fresh)] = 0  # a version newer than the list read just before
    return ~fresh[versions]


def begin_refresh(folder: Path, fingerprint: bytes, durability: Durability = NEVER) -> None:
    """Say that all gists shall be of the net with this fingerprint (16 bytes, not ``MIXED``).

    Writes 2 bytes per gist that is of another, once; nothing if all are said to be already. Interrupted, it is simply
    called again. Raises TreeLockedError (a level file is being written for seconds on end), CorruptTreeError,
    StoreError.
    """
    assert len(fingerprint) == 16 and fingerprint != MIXED
    with locked(folder):
        known = _settled(folder, fingerprint, durability)
        for level in _levels(folder):
            with _writer(level_path(folder, level), None, durability) as writer:
                if writer.header.gist_fingerprint not in (fingerprint, MIXED):
                    _mix(folder, writer, known, durability)


def mark_damaged(folder: Path, level: int, start: int, stop: int, durability: Durability = NEVER) -> None:
    """Say that gists ``[start, stop)``, and the others in their checksum pages, must be made again.

    Damage in the unfinished last page is for ``cut_level`` to take away. Raises IndexError beyond the committed gists,
    CorruptTreeError (damage there, or in the header), TreeLockedError, StoreError.
    """
    with locked(folder):
        known = _settled(folder, None, durability)
        with _writer(level_path(folder, level), None, durability) as writer:
            if not 0 <= start <= stop <= writer.count:
                raise IndexError(f"gists [{start}, {stop}) of level {level} of {folder}, which has {writer.count}")
            if start == stop:
                return
            rows = page_rows(level)
            first, last = start // rows * rows, min(-(-stop // rows) * rows, writer.count)
            if writer.header.gist_fingerprint == MIXED:
                _note(folder, level, first, last, 0, durability)
            else:
                _mix(folder, writer, known, durability, first, last)


def give_up_gists(tree: MegaContextTree, level: int, start: int, stop: int) -> None:
    """Have damaged gists made again, wherever the damage is, by the tree's writer.

    Those of the unfinished last page are cut off: nothing in the file could be put beside them. Raises StoreError where
    ``tree`` is open for reading only, and what ``mark_damaged`` does.
    """
    if not tree.writable:
        raise StoreError(f"gists of {tree.path} are damaged, and another process writes the tree")
    whole = tree.gist_count(level) // page_rows(level) * page_rows(level)
    try:
        mark_damaged(tree.path, level, start, min(stop, whole))
    except CorruptTreeError:  # the last page is damaged, too
        tree.mend_gists(level)
        mark_damaged(tree.path, level, start, min(stop, tree.gist_count(level)))
    if stop > whole:
        tree.mend_gists(level)


def append_gists(path: Path, header: Header, start: int, rows: NDArray[Any], durability: Durability = NEVER) -> int:
    """Commit gists behind the last one of a level file; returns the new count. The file is made if there is none.

    ``header``: its count is ignored, ``header.gist_fingerprint`` is the net that made ``rows``, ``[n, dim]``; ``start``
    is where the caller believes the end to be. Raises FingerprintMismatchError (a net nobody called ``begin_refresh``
    for, another model), StoreError (``start`` is not the end, disk full), CorruptTreeError, TreeLockedError.
    """
    with _writer(path, header, durability) as writer:
        return _append(writer, header, start, rows, durability)


def append_missing_gists(
    path: Path, header: Header, start: int, rows: NDArray[Any], durability: Durability = NEVER
) -> int:
    """As ``append_gists``, but for those of ``rows`` that are there: made by the same net in another engine.

    Raises what ``append_gists`` does.
    """
    with _writer(path, header, durability) as writer:
        same = writer.header.gist_fingerprint == header.gist_fingerprint
        there = min(max(writer.count - start, 0), len(rows)) if same else 0
        if there == len(rows):
            return writer.count
        return _append(writer, header, start + there, rows[there:], durability)


def _append(writer: LevelWriter, header: Header, start: int, rows: NDArray[Any], durability: Durability) -> int:
    if start != writer.count:
        raise StoreError(
            f"{writer.path}: gists start at {start}, but {writer.count} are committed; a level only grows"
        )
    return _put(writer, header, start, rows, durability)


def replace_gists(path: Path, header: Header, start: int, rows: NDArray[Any], durability: Durability = NEVER) -> None:
    """Put ``rows``, ``[n, dim]``, in the place of committed gists; readers see each as it was or as it is now.

    Raises what ``append_gists`` does; StoreError beyond the committed gists.
    """
    with _writer(path, header, durability) as writer:
        if start + len(rows) > writer.count:
            raise StoreError(f"{path}: gists [{start}, {start + len(rows)}) of {writer.count} cannot be replaced")
        _put(writer, header, start, rows, durability)


def _put(writer: LevelWriter, header: Header, start: int, rows: NDArray[Any], durability: Durability) -> int:
    """Append or replace, with the version around it."""
    folder, stop = writer.path.parent, start + len(rows)
    if writer.header.gist_fingerprint not in (MIXED, header.gist_fingerprint):
        # Rows of another net join it. This may also be a net whose refresh was overtaken: its rows count as stale.
        known = read_nets(folder) or []
        if not version_of(known, header.gist_fingerprint):
            raise _unknown_net(writer.path)
        _mix(folder, writer, known, durability)
    mixed = writer.header.gist_fingerprint == MIXED
    if mixed:
        version = version_of(read_nets(folder) or [], header.gist_fingerprint)
        if not version:
            raise _unknown_net(writer.path)
        # Also before an append: rows may have been here before, and their versions with them.
        _note(folder, header.level, start, stop, 0, durability)
    if start < writer.count:
        writer.overwrite(start, rows)
    else:
        writer.append(rows, start)
    if mixed:
        _note(folder, header.level, start, stop, version, durability)
    return writer.count


def finish(folder: Path, durability: Durability = NEVER) -> bool:
    """Give every level file whose gists are all of the newest net that net's fingerprint; whether none is stale now.

    A file with the gist of a sealed span, made by an earlier net, stays ``MIXED``: it is not stale, and not new.
    Cheap where no level is ``MIXED``. Raises CorruptTreeError, TreeLockedError, StoreError.
    """
    done = True
    with locked(folder):
        target = newest(folder)
        sealed = SealedSpans.of(folder)
        for level in _levels(folder):
            if (header := level_header(level_path(folder, level))) is None:
                continue
            if header.gist_fingerprint != MIXED:
                done = done and header.gist_fingerprint == target
                continue
            with _writer(level_path(folder, level), None, durability) as writer:
                if stale(folder, level, sealed).any():
                    done = False
                    continue
                outdated = _outdated(folder, level, writer.count)
                for item in sealed:
                    if item.level > level:  # holes are of no net
                        outdated[item.start // BLOCK**level : item.stop // BLOCK**level] = False
                if target is not None and not outdated.any():
                    writer.set_gist_fingerprint(target)
                    column_path(folder, level, VERSION_COLUMN).unlink(missing_ok=True)
    return done


def _mix(
    folder: Path, writer: LevelWriter, known: list[bytes], durability: Durability, bad: int = 0, bad_stop: int = 0
) -> None:
    """Let the version column decide from now on: fill it, then say so. Rows ``[bad, bad_stop)`` become version 0."""
    level = writer.header.level
    version = version_of(known, writer.header.gist_fingerprint)
    with Column(folder, level, VERSION_COLUMN, np.uint16, writable=True) as column:
        column.fill(0, writer.count, version)
        column.fill(bad, bad_stop, 0)
        if durability.always:
            column.sync()
    writer.set_gist_fingerprint(MIXED)


def _note(folder: Path, level: int, start: int, stop: int, version: int, durability: Durability) -> None:
    with Column(folder, level, VERSION_COLUMN, np.uint16, writable=True) as column:
        column.fill(start, stop, version)
        if durability.always:
            column.sync()
    durability.wrote(column.path)


def _unknown_net(path: Path) -> FingerprintMismatchError:
    return FingerprintMismatchError(f"{path} was written by another GistNet; refresh the tree or drop its gists")


def level_header(path: Path) -> Header | None:
    """Header of a level file; None if there is none, or an empty one whose creator is about to write it, or died.

    Raises CorruptTreeError, StoreError.
    """
    try:
        if path.stat().st_size == 0:
            return None
        reader = LevelReader(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    try:
        return reader.header
    finally:
        reader.close()


def _levels(folder: Path) -> list[int]:
    return [level for level in gist_levels(folder) if level_header(level_path(folder, level)) is not None]


def _fingerprints(folder: Path) -> list[bytes]:
    """What the level files say, highest level first, without repeats and without ``MIXED``."""
    found: list[bytes] = []
    for level in reversed(gist_levels(folder)):
        header = level_header(level_path(folder, level))
        if header is not None and header.gist_fingerprint != MIXED:
            if header.gist_fingerprint in found:
                found.remove(header.gist_fingerprint)
            found.append(header.gist_fingerprint)
    return found


def _settled(folder: Path, fingerprint: bytes | None, durability: Durability) -> list[bytes]:
    """What is in ``gists.json`` from now on: what was, or what is in use; and ``fingerprint``, if given, the newest."""
    found = read_nets(folder)
    known = _fingerprints(folder) if found is None else found
    if fingerprint is not None and known[-1:] != [fingerprint]:
        if len(known) >= MOST_NETS:
            raise StoreError(f"{folder} has seen {len(known)} GistNets, and cannot tell more apart; drop its gists")
        known = [*known, fingerprint]
    if known != found:
        if found is None:  # numbers of a lost list must not be read by a new one
            for level in gist_levels(folder):
                column_path(folder, level, VERSION_COLUMN).unlink(missing_ok=True)
        write_nets(folder, known, durability)
    return known


@contextmanager
def _writer(path: Path, header: Header | None, durability: Durability) -> Iterator[LevelWriter]:
    """A level file, open for writing; whoever writes it now is done in a moment. ``header`` None: as it is on disk."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            if header is None:
                writer = open_again(path, durability)
            else:
                assert header.gist_fingerprint != MIXED, "rows are made by one net"
                try:
                    writer = LevelWriter(path, header, durability)
                except FingerprintMismatchError:
                    # Which net the file is of is checked in ``_put``; another model still raises.
                    found = level_header(path)
                    if found is None or found.model_fingerprint != header.model_fingerprint:
                        raise
                    writer = LevelWriter(path, _with_net(header, found.gist_fingerprint), durability)
            break
        except TreeLockedError:
            if time.monotonic() > until:
                raise
            time.sleep(_PAUSE_SECONDS)
    with writer:
        yield writer


def _with_net(header: Header, fingerprint: bytes) -> Header:
    return Header(header.level, header.dtype, header.dim, header.count, header.model_fingerprint, fingerprint)
