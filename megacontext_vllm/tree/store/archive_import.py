"""Import: take an archive (``archive.py``) into a store, believing nothing that it says.

The archive is read once, from front to back, into a hidden folder beside the trees, and only files with names that a
tree has are ever written. When all of it is there and found sound, the folder is renamed into place in one step.
"""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

from megacontext_vllm.errors import CorruptTreeError, FingerprintMismatchError, RequestError, StoreError
from megacontext_vllm.tree.files.checksums import write_all
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.files.header import HEADER_BYTES, Header
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count
from megacontext_vllm.tree.files.locks import lock_writer, unlock
from megacontext_vllm.tree.files.mend import rebuild_checksums
from megacontext_vllm.tree.meta import parse_meta, write_meta
from megacontext_vllm.tree.nodes import num_nodes
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.store.archive import Progress
from megacontext_vllm.tree.store.chain import chain_of
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.manifest import DIGEST_BYTES, MAX_BYTES, NAME, FileEntry, Manifest
from megacontext_vllm.tree.store.names import checked_name
from megacontext_vllm.tree.store.places import IMPORT_PREFIX, disk_bytes, is_namespace, names_lock
from megacontext_vllm.tree.store.tar import BLOCK_BYTES, END, padding, parse_header
from megacontext_vllm.tree.tree import MegaContextTree

logger = logging.getLogger(__name__)

_BEGINNING = NAME.encode("ascii") + b"\0"
_CHUNK_BYTES = 1 << 20
_HOLE_BYTES = 1 << 16
_HOLE = bytes(_HOLE_BYTES)
"""Zeros in runs of this size are not written but skipped: sealed spans are holes again."""


def import_tree(
    store: Path,
    file: BinaryIO,
    namespace: str,
    *,
    model_fingerprint: bytes | None = None,
    progress: Progress | None = None,
) -> str:
    """Take the tree in the archive ``file`` into ``namespace`` of ``store``; returns its id.

    It keeps its id and its name where those are free; else it gets another id, and no name. ``model_fingerprint``: the
    only model whose trees are taken, None: any. Any number of servers may use the store meanwhile. When this returns
    the tree is on the disk. Raises CorruptTreeError (the archive is damaged or forged), FingerprintMismatchError
    (another model's), RequestError (no such namespace), StoreError (disk); nothing is left in the store then.
    """
    if not is_namespace(namespace):
        raise RequestError(f"{namespace!r} is not a namespace")
    manifest = _read_manifest(file)
    if model_fingerprint is not None and manifest.model_fingerprint != model_fingerprint:
        raise FingerprintMismatchError("the archive is of another model's tree (tokenizer or embedding table differ)")
    trees = Path(store) / "trees"
    with _workshop(trees, namespace) as folder:
        metadata = _unpack(file, manifest, folder, progress)
        with closing(_checked_tree(folder, manifest, metadata, namespace)) as tree:
            hashes = chain_of(tree)
        with closing(TreeIndex(Path(store) / "index.sqlite", manifest.model_fingerprint)) as index:
            return _put_in_place(trees, namespace, folder, metadata, hashes, index)


@contextmanager
def _workshop(trees: Path, namespace: str) -> Iterator[Path]:
    """A folder to unpack into, gone afterwards unless it was renamed. Recovery leaves it alone as long as we live."""
    folder = trees / namespace / f"{IMPORT_PREFIX}{uuid.uuid4().hex}"
    lock = -1
    try:
        trees.mkdir(parents=True, exist_ok=True)
        with names_lock(trees):
            folder.mkdir(parents=True)
            lock = lock_writer(folder)
        yield folder
    except OSError as error:
        raise StoreError(
            f"cannot import into {trees}: {error.strerror or error}; free disk space or check the rights of the store"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        unlock(lock)


def _exactly(file: BinaryIO, size: int) -> bytes:
    """The next ``size`` bytes, few enough to hold. Raises CorruptTreeError when the archive ends before, StoreError."""
    parts = []
    try:
        while size and (part := file.read(size)):
            parts.append(part)
            size -= len(part)
    except OSError as error:
        raise StoreError(f"cannot read the archive: {error.strerror or error}") from error
    if size:
        raise CorruptTreeError("the archive ends early; it was not written or not sent as a whole")
    return b"".join(parts)


def _read_manifest(file: BinaryIO) -> Manifest:
    try:
        begun = _exactly(file, len(_BEGINNING))
    except CorruptTreeError:
        begun = b""
    if begun != _BEGINNING:
        raise CorruptTreeError("this is not a megacontext archive (made by: megacontext tree export)")
    _, size = parse_header(begun + _exactly(file, BLOCK_BYTES - len(begun)))
    if size > MAX_BYTES:
        raise CorruptTreeError(f"the archive's {NAME} claims an impossible size")
    manifest = Manifest.parse(_exactly(file, size))
    _exactly(file, padding(size))
    return manifest


def _unpack(file: BinaryIO, manifest: Manifest, folder: Path, progress: Progress | None) -> dict[str, Any]:
    """Write the files of the archive into ``folder``, all but ``meta.json``, which is returned."""
    total, done = sum(entry.size for entry in manifest.files), 0
    metadata: dict[str, Any] = {}
    for entry in manifest.files:
        if parse_header(_exactly(file, BLOCK_BYTES)) != (entry.name, entry.size):
            raise CorruptTreeError(f"the archive does not hold the files that its {NAME} names, in that order")
        digest = blake2b(digest_size=DIGEST_BYTES)
        if entry.name == "meta.json":
            data = _exactly(file, entry.size)
            digest.update(data)
            found = parse_meta(data, "the archive's meta.json")
            metadata = {key: value for key, value in found.items() if isinstance(value, str | int | float | None)}
            done += entry.size
        else:
            for written in _write(file, entry, manifest, folder, digest):
                if progress is not None:
                    progress(done + written, total)
            done += entry.size
        if digest.digest() != entry.digest:
            raise CorruptTreeError(f"{entry.name} in the archive differs from its digest")
        _exactly(file, padding(entry.size))
    if _exactly(file, len(END)) != END:
        raise CorruptTreeError(f"the archive holds more than its {NAME} names")
    return metadata


def _write(file: BinaryIO, entry: FileEntry, manifest: Manifest, folder: Path, digest: Any) -> Iterator[int]:
    """Write one file; yields the bytes done so far."""
    fd = os.open(folder / entry.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        at = 0
        while at < entry.size:
            first = entry.name.endswith(".ctx") and at == 0
            data = _exactly(file, min(HEADER_BYTES if first else _CHUNK_BYTES, entry.size - at))
            if first:
                _require_fitting(entry, data, manifest)
            digest.update(data)
            for start in range(0, len(data), _HOLE_BYTES):
                if (piece := data[start : start + _HOLE_BYTES]) != _HOLE:
                    write_all(fd, piece, at + start)
            at += len(data)
            yield at
        os.ftruncate(fd, entry.size)
    finally:
        os.close(fd)


def _require_fitting(entry: FileEntry, data: bytes, manifest: Manifest) -> None:
    """Check the header of a level file before its rows are taken. Raises CorruptTreeError."""
    level, where = int(entry.name[3:-4]), f"{entry.name} in the archive"
    try:
        header = Header.unpack(data)
    except CorruptTreeError as error:
        raise CorruptTreeError(f"{where}: {error}") from None
    most = num_nodes(manifest.length, level)
    if header.level != level or header.model_fingerprint != manifest.model_fingerprint:
        raise CorruptTreeError(f"{where} is of another level or another model than it should be")
    if header.count > most or (level == 0 and header.count < most):
        raise CorruptTreeError(f"{where} has {header.count} rows; a tree of {manifest.length} tokens has {most}")
    if header.file_bytes(header.count) != entry.size:
        raise CorruptTreeError(f"{where} has {entry.size} bytes, which {header.count} rows do not take")


def _checked_tree(folder: Path, manifest: Manifest, metadata: dict[str, Any], namespace: str) -> MegaContextTree:
    """Make a tree of what was unpacked and open it. Raises CorruptTreeError for what does not fit together."""
    if not metadata or metadata["tree_id"] != manifest.tree_id:
        raise CorruptTreeError("the archive's meta.json is of another tree")
    if metadata["model_fingerprint"] != manifest.model_fingerprint.hex() or metadata["created"] != manifest.created:
        raise CorruptTreeError(f"the archive's meta.json and {NAME} do not agree")
    for span in SealedSpans.of(folder):
        if span.stop > manifest.length:
            raise CorruptTreeError("the archive's sealed.json names a span behind the end of the tree")
    rows = set()
    for file in sorted(folder.glob("LOD*.ctx")):
        rebuild_checksums(file)
        with closing(LevelReader(file)) as reader:
            rows.add((reader.header.dtype, reader.header.dim) if reader.header.level else None)
    if len(rows) > 2:
        raise CorruptTreeError("the archive's gists are not all of one kind")
    metadata["namespace"] = namespace
    write_meta(folder, metadata)
    return MegaContextTree.open(folder, model_fingerprint=manifest.model_fingerprint, writable=False)


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_path(folder)


def _put_in_place(
    trees: Path, namespace: str, folder: Path, metadata: dict[str, Any], hashes: list[bytes], index: TreeIndex
) -> str:
    """Give the tree an id and a name that are free, rename its folder to it and index it. Returns the id."""
    with names_lock(trees):
        tree_id = metadata["tree_id"]
        if (trees / namespace / tree_id).exists():
            tree_id = metadata["tree_id"] = uuid.uuid4().hex
        metadata["name"] = _free_name(metadata["name"], namespace, index)
        write_meta(folder, metadata)
        _sync(folder)
        folder.rename(trees / namespace / tree_id)
        sync_path(trees / namespace)
        try:
            length, size = read_count(trees / namespace / tree_id / "LOD0.ctx"), disk_bytes(trees / namespace / tree_id)
            index.record(namespace, tree_id, length, metadata["created"], hashes, size=size)
            index.label(namespace, tree_id, metadata["name"], metadata["pinned"])
        except StoreError as error:
            logger.warning("tree %s is imported, and found once the store is opened anew: %s", tree_id, error)
    return str(tree_id)


def _free_name(name: str | None, namespace: str, index: TreeIndex) -> str | None:
    try:
        name = None if name is None else checked_name(name)
    except RequestError:
        return None
    return None if name is None or index.named(namespace, name) is not None else name
