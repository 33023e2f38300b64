"""Export: one tree as a single plain tar file, with a digest of each part (``archive_import.py`` is the way back).

First member ``manifest.json``, then the files of the tree as they are on the disk: level files cut off behind their
committed rows, columns, ``meta.json``, ``gists.json`` and ``sealed.json``. Checksum sidecars are left out: they are
made anew. Where a span is sealed, its rows are zeros.
"""

import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from hashlib import blake2b
from typing import BinaryIO

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.gist_nets import GISTS
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.store.archive_parts import CHUNK_BYTES, parts_of
from megacontext_vllm.tree.store.manifest import DIGEST_BYTES, NAME, FileEntry, Manifest
from megacontext_vllm.tree.store.tar import END, member_header, padding
from megacontext_vllm.tree.tree import MegaContextTree

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

_TRIES = 5


def export_tree(tree: MegaContextTree, file: BinaryIO, progress: Progress | None = None) -> None:
    """Write ``tree`` as of now, as an archive; it may grow meanwhile.

    A ``file`` that cannot seek (a pipe) costs a temporary file of the same size. Raises CorruptTreeError for a damaged
    tree (repair it first), StoreError when something cannot be read or written.
    """
    try:
        if file.seekable():
            _export(tree, file, progress)
            return
        with tempfile.TemporaryFile() as spool:
            _export(tree, spool, progress)
            spool.seek(0)
            shutil.copyfileobj(spool, file, CHUNK_BYTES)
    except OSError as error:
        raise StoreError(
            f"cannot export tree {tree.tree_id}: {error.strerror or error}; free disk space or write elsewhere "
            "(temporary files go where TMPDIR says)"
        ) from error


def _export(tree: MegaContextTree, file: BinaryIO, progress: Progress | None) -> None:
    start = file.tell()
    for _ in range(_TRIES):
        before = _nets(tree)
        with ExitStack() as opened:
            _export_once(tree, file, opened, progress)
        if _nets(tree) == before:
            return
        file.seek(start)  # a refresh began or ended, so that rows may be of another net than their header says
        file.truncate()
    raise StoreError(f"tree {tree.tree_id} is being refreshed over and over; export it when that is done")


def _nets(tree: MegaContextTree) -> tuple[bytes | None, list[bytes]]:
    """What says which GistNet made which level; versions of single gists aside."""
    gists = tree.path / GISTS
    headers = []
    for level in tree.gist_levels():
        with suppress(FileNotFoundError), closing(LevelReader(tree.gist_path(level))) as reader:
            headers.append(reader.header.gist_fingerprint)
    return gists.read_bytes() if gists.exists() else None, headers


def _export_once(tree: MegaContextTree, file: BinaryIO, opened: ExitStack, progress: Progress | None) -> None:
    length = tree.length
    parts = parts_of(tree, length, opened)
    manifest = Manifest(
        tree.tree_id,
        tree.namespace,
        length,
        tree.model_fingerprint,
        tree.created,
        read_meta(tree.path)["name"],
        [FileEntry(part.name, part.size) for part in parts],
    )
    size, done, total = len(manifest.pack()), 0, sum(part.size for part in parts)
    start = file.tell()
    # The manifest comes first and the digests are known last, so its place is kept free.
    _write(file, member_header(NAME, size) + bytes(size + padding(size)))
    for part, entry in zip(parts, manifest.files):
        _write(file, member_header(part.name, part.size))
        digest, written = blake2b(digest_size=DIGEST_BYTES), 0
        for chunk in part.chunks():
            digest.update(chunk)
            _write(file, chunk)
            written += len(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
        if written != part.size:
            raise StoreError(f"{tree.path / part.name} became shorter while it was exported; try again")
        _write(file, bytes(padding(part.size)))
        entry.digest = digest.digest()
    _write(file, END)
    end = file.tell()
    file.seek(start)
    _write(file, member_header(NAME, size) + manifest.pack())
    file.seek(end)
    file.flush()


def _write(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:  # a raw file may take less than it is given
        view = view[file.write(view) :]
