"""One MegaContext Tree: a folder with ``meta.json``, the tokens in ``LOD0.ctx`` and gists in ``LOD1.ctx`` and up."""

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import (
    CorruptTreeError,
    FingerprintMismatchError,
    StoreError,
    TreeLockedError,
    UnknownTreeError,
)
from megacontext_vllm.tree.files.level_file import Header, LevelReader, RowType, read_count, write_rows
from megacontext_vllm.tree.nodes import num_nodes

META_VERSION = 1
_META: dict[str, type] = {
    "format_version": int,
    "tree_id": str,
    "namespace": str,
    "created": float,
    "model_fingerprint": str,
}
DELETED_SUFFIX = ".deleted"
"""A folder being deleted is first renamed to end in this, so that it stops being a tree in one step."""


class MegaContextTree:
    """Handle of one tree. Any number of readers, one writer; made by ``create`` or ``open``, ended by ``close``."""

    tree_id: str
    namespace: str
    created: float
    """Unix seconds."""
    path: Path
    model_fingerprint: bytes

    def __init__(self, path: Path, meta: dict[str, object], model_fingerprint: bytes) -> None:
        self.path = path
        self.tree_id = str(meta["tree_id"])
        self.namespace = str(meta["namespace"])
        self.created = float(str(meta["created"]))
        self.model_fingerprint = model_fingerprint
        self._lock_fd = -1
        self._append_lock = threading.Lock()
        try:
            self._tokens = LevelReader(path / "LOD0.ctx")
        except FileNotFoundError:
            raise CorruptTreeError(f"{path} has no LOD0.ctx") from None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if self._tokens.header.model_fingerprint != model_fingerprint:
            self._tokens.close()
            raise FingerprintMismatchError(f"{path}/LOD0.ctx was written for another model than its meta.json says")

    @classmethod
    def create(cls, path: Path, *, tree_id: str, namespace: str, model_fingerprint: bytes) -> "MegaContextTree":
        """Make an empty tree in the new folder ``path`` and become its writer.

        ``model_fingerprint``: 16 bytes. Raises StoreError when the folder exists or cannot be written.
        """
        meta = {
            "format_version": META_VERSION,
            "tree_id": tree_id,
            "namespace": namespace,
            "created": time.time(),
            "model_fingerprint": model_fingerprint.hex(),
        }
        try:
            path.mkdir(parents=True)
            lock_fd = _lock(path)
        except OSError as error:
            raise StoreError(f"cannot create the tree folder {path}: {error.strerror}") from error
        try:
            write_rows(path / "LOD0.ctx", _token_header(model_fingerprint), 0, np.empty(0, np.uint32))
            # meta.json comes last and whole: a folder without it is not a tree yet.
            draft = path / "meta.json.tmp"
            draft.write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            draft.replace(path / "meta.json")
            tree = cls(path, meta, model_fingerprint)
        except BaseException as error:
            shutil.rmtree(path, ignore_errors=True)
            _unlock(lock_fd)
            if isinstance(error, OSError):
                raise StoreError(f"cannot create the tree folder {path}: {error.strerror}") from error
            raise
        tree._lock_fd = lock_fd
        return tree

    @classmethod
    def open(cls, path: Path, *, model_fingerprint: bytes, writable: bool) -> "MegaContextTree":
        """Open an existing tree.

        Raises UnknownTreeError (no tree there), CorruptTreeError, FingerprintMismatchError (another model's tree),
        TreeLockedError (``writable`` and another handle or process writes it), StoreError (no rights).
        """
        meta = _read_meta(path)
        if meta["model_fingerprint"] != model_fingerprint.hex():
            raise FingerprintMismatchError(f"{path} belongs to another model (tokenizer or embedding table differ)")
        tree = cls(path, meta, model_fingerprint)
        if writable:
            try:
                tree.become_writer()
            except BaseException:
                tree.close()
                raise
        return tree

    @property
    def writable(self) -> bool:
        """Whether this handle is the tree's writer."""
        return self._lock_fd >= 0

    def become_writer(self) -> None:
        """Turn a reading handle into the writer; nothing happens if it is already.

        Raises TreeLockedError, UnknownTreeError (deleted meanwhile), CorruptTreeError, StoreError.
        """
        if self.writable:
            return
        try:
            self._lock_fd = _lock(self.path)
        except FileNotFoundError:
            raise UnknownTreeError(f"{self.path} was deleted") from None
        except OSError as error:
            raise StoreError(f"cannot lock {self.path}: {error.strerror}") from error
        try:
            # Appending nothing checks the header and cuts off what a dead writer left unfinished.
            write_rows(self._tokens.path, self._tokens.header, self.length, np.empty(0, np.uint32))
            # A power cut can take tokens and leave their gists: other tokens may come to stand there, so drop them.
            for level in self._gist_levels():
                if self.gist_count(level) > num_nodes(self.length, level):
                    self.gist_path(level).unlink(missing_ok=True)
        except BaseException:
            self._give_up_writing()
            raise

    @property
    def length(self) -> int:
        """Committed tokens, by whatever process."""
        return self._tokens.refresh()

    def tokens(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Tokens ``[start, stop)``: read-only uint32 view ``[n]`` of the file. Raises IndexError beyond ``length``."""
        if stop > self._tokens.count:
            self._tokens.refresh()
        return self._tokens.rows(start, stop)

    def append(self, tokens: NDArray[np.uint32], at: int | None = None) -> int:
        """Commit ``tokens``, uint32 ``[n]``, behind the last one; returns the new length.

        ``at``: where the caller believes the end to be. Holders of the same tree pass it to notice that another one
        extended the tree first. Raises StoreError (not the writer, ``at`` is not the end, disk full).
        """
        if not self.writable:
            raise StoreError(f"{self.path} is open for reading; only its writer can append")
        with self._append_lock:
            length = self.length
            if at is not None and at != length:
                raise StoreError(
                    f"tree {self.tree_id} ends at token {length}, not at {at}: another request extended it"
                )
            write_rows(self._tokens.path, self._tokens.header, length, tokens)
            return self.length

    def gist_path(self, level: int) -> Path:
        """File of the gists of ``level`` (1 or more); it need not exist."""
        assert level >= 1
        return self.path / f"LOD{level}.ctx"

    def gist_count(self, level: int) -> int:
        """Committed gists of ``level``; 0 when there is no file yet. Cheap enough for polling."""
        return read_count(self.gist_path(level))

    def drop_gists(self) -> None:
        """Delete all gists, to be rebuilt from LOD0. Raises StoreError when this handle is not the writer."""
        if not self.writable:
            raise StoreError(f"{self.path} is open for reading; only its writer can drop gists")
        for level in self._gist_levels():
            self.gist_path(level).unlink(missing_ok=True)

    def _gist_levels(self) -> list[int]:
        names = (file.stem[3:] for file in self.path.glob("LOD*.ctx"))
        return sorted(int(name) for name in names if name.isdecimal() and int(name) >= 1)

    def delete(self) -> None:
        """Remove the tree from disk and close the handle. Views stay valid. Raises StoreError if not the writer."""
        if not self.writable:
            raise StoreError(f"{self.path} is open for reading; only its writer can delete it")
        grave = self.path.with_name(f".{self.path.name}{DELETED_SUFFIX}")
        try:
            self.path.rename(grave)
        except OSError as error:
            raise StoreError(f"cannot delete {self.path}: {error.strerror}") from error
        finally:
            self.close()
        shutil.rmtree(grave, ignore_errors=True)

    def close(self) -> None:
        """Release the files and the writer lock; may be called twice."""
        self._tokens.close()
        self._give_up_writing()

    def _give_up_writing(self) -> None:
        if self._lock_fd >= 0:
            _unlock(self._lock_fd)
            self._lock_fd = -1


def _token_header(model_fingerprint: bytes) -> Header:
    return Header(0, RowType.UINT32, 1, 0, model_fingerprint, bytes(16))


def _read_meta(path: Path) -> dict[str, object]:
    """Raises UnknownTreeError, CorruptTreeError, StoreError."""
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnknownTreeError(f"there is no tree in {path}") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CorruptTreeError(f"{path}/meta.json is not valid JSON: {error}") from None
    if not isinstance(meta, dict) or not all(isinstance(meta.get(key), kind) for key, kind in _META.items()):
        raise CorruptTreeError(f"{path}/meta.json lacks one of {', '.join(_META)}")
    if meta["format_version"] != META_VERSION:
        raise CorruptTreeError(f"{path}: format version {meta['format_version']}; this release reads {META_VERSION}")
    return meta


def _lock(path: Path) -> int:
    """Take the writer lock of a tree folder; returns its file descriptor. Raises TreeLockedError, OSError."""
    file = path / "writer.lock"
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The folder may have been deleted between open and lock; then this lock guards nothing.
        if not os.path.samestat(os.fstat(fd), os.stat(file)):
            raise FileNotFoundError(file)
    except BlockingIOError:
        os.close(fd)
        raise TreeLockedError(f"{path} has another writer; wait until it is done, or use another store") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _unlock(fd: int) -> None:
    # By hand: a child process forked meanwhile shares the lock, and closing our copy would not release it.
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
