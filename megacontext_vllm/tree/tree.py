"""One MegaContext Tree: a folder with ``meta.json``, the tokens in ``LOD0.ctx`` and gists in ``LOD1.ctx`` and up."""

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import (
    CorruptTreeError,
    FingerprintMismatchError,
    SealedSpanError,
    StoreError,
    UnknownTreeError,
)
from megacontext_vllm.tree.files.durability import NEVER, Durability, sync_path
from megacontext_vllm.tree.files.header import Header, RowType, level_path
from megacontext_vllm.tree.files.level_file import LevelWriter
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count
from megacontext_vllm.tree.files.locks import lock_use, lock_writer, unlock
from megacontext_vllm.tree.files.mend import cut_level, remove_level
from megacontext_vllm.tree.meta import META_VERSION, read_meta, write_meta
from megacontext_vllm.tree.nodes import BLOCK, num_nodes
from megacontext_vllm.tree.sealed import SealedSpans

logger = logging.getLogger(__name__)

TOKENS = "LOD0.ctx"
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

    def __init__(self, path: Path, meta: dict[str, Any], durability: Durability) -> None:
        self.path = path
        self.tree_id = str(meta["tree_id"])
        self.namespace = str(meta["namespace"])
        self.created = float(meta["created"])
        self.name: str | None = meta.get("name")
        """As of opening; who needs it fresh asks ``meta.read_meta``."""
        self.pinned = bool(meta.get("pinned", False))
        self.model_fingerprint = bytes.fromhex(meta["model_fingerprint"])
        self._durability = durability
        self._append_lock = threading.Lock()
        self._lock_fd = self._use_fd = -1
        self._writer: LevelWriter | None = None
        try:
            self._use_fd = lock_use(path)
        except FileNotFoundError:
            raise UnknownTreeError(f"there is no tree in {path}") from None
        except OSError as error:
            raise StoreError(f"cannot lock {path}: {error.strerror}") from error
        try:
            self.sealed = SealedSpans.of(path)
            """Spans whose tokens are gone; it cannot change while this handle is open."""
            self._tokens = LevelReader(path / TOKENS)
            if self._tokens.header.model_fingerprint != self.model_fingerprint:
                self._tokens.close()
                raise FingerprintMismatchError(f"{path}/{TOKENS} was written for another model than its meta.json says")
        except FileNotFoundError:
            unlock(self._use_fd)
            raise CorruptTreeError(f"{path} has no {TOKENS}") from None
        except OSError as error:
            unlock(self._use_fd)
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        except BaseException:
            unlock(self._use_fd)
            raise

    @classmethod
    def create(
        cls, path: Path, *, tree_id: str, namespace: str, model_fingerprint: bytes, durability: Durability = NEVER
    ) -> "MegaContextTree":
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
            lock_fd = lock_writer(path)
        except OSError as error:
            raise StoreError(f"cannot create the tree folder {path}: {error.strerror}") from error
        writer = None
        try:
            writer = LevelWriter(path / TOKENS, _token_header(model_fingerprint), durability)
            # meta.json comes last and whole: a folder without it is not a tree yet.
            write_meta(path, meta, durability)
            if durability.always:
                sync_path(path.parent)
            durability.wrote(path, path.parent)
            tree = cls(path, meta, durability)
        except BaseException as error:
            if writer is not None:
                writer.close()
            shutil.rmtree(path, ignore_errors=True)
            unlock(lock_fd)
            if isinstance(error, OSError):
                raise StoreError(f"cannot create the tree folder {path}: {error.strerror}") from error
            raise
        tree._lock_fd, tree._writer = lock_fd, writer
        return tree

    @classmethod
    def open(
        cls, path: Path, *, model_fingerprint: bytes | None, writable: bool, durability: Durability = NEVER
    ) -> "MegaContextTree":
        """Open an existing tree. ``model_fingerprint`` None takes the tree of any model.

        Raises UnknownTreeError (no tree there), CorruptTreeError, FingerprintMismatchError (another model's tree),
        TreeLockedError (``writable`` and another handle or process writes it), StoreError (no rights).
        """
        meta = read_meta(path)
        if model_fingerprint is not None and meta["model_fingerprint"] != model_fingerprint.hex():
            raise FingerprintMismatchError(f"{path} belongs to another model (tokenizer or embedding table differ)")
        tree = cls(path, meta, durability)
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
            self._lock_fd = lock_writer(self.path)
        except FileNotFoundError:
            raise UnknownTreeError(f"{self.path} was deleted") from None
        except OSError as error:
            raise StoreError(f"cannot lock {self.path}: {error.strerror}") from error
        try:
            # Opening cuts off what a dead writer left unfinished.
            self._writer = LevelWriter(self._tokens.path, self._tokens.header, self._durability)
            for level in self.gist_levels():
                self.mend_gists(level)
        except BaseException:
            self._give_up_writing()
            raise

    def mend_gists(self, level: int) -> None:
        """Let go of a damaged end of the gists of ``level``, or of gists of lost tokens; they are made again from LOD0.

        A power cut can take tokens and leave their gists: other tokens may come to stand there.
        """
        path = self.gist_path(level)
        try:
            with closing(LevelReader.salvage(path)) as reader:
                there, should = reader.count, reader.header.count
                whole = there if should == there and not reader.bad_pages(there // reader.page_rows, 1 << 62) else None
        except (CorruptTreeError, FileNotFoundError) as error:
            logger.warning("the gists of level %d of tree %s are made again: %s", level, self.tree_id, error)
            self._drop(level)
            return
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if should > num_nodes(self.length, level):
            self._drop(level)
        elif whole is None:
            sound = there // BLOCK * BLOCK
            logger.warning("the gists of level %d of tree %s are made again from %d on", level, self.tree_id, sound)
            cut_level(path, sound)

    @property
    def length(self) -> int:
        """Committed tokens, by whatever process."""
        return self._tokens.refresh()

    def tokens(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Tokens ``[start, stop)``: read-only uint32 view ``[n]`` of the file.

        Raises IndexError beyond ``length``, SealedSpanError where tokens are gone.
        """
        self._require_raw(start, stop)
        if stop > self._tokens.count:
            self._tokens.refresh()
        return self._tokens.rows(start, stop)

    def read_tokens(self, start: int, stop: int) -> NDArray[np.uint32]:
        """Tokens ``[start, stop)`` as a copy, uint32 ``[n]``, compared with their checksums.

        Raises IndexError beyond ``length``, SealedSpanError where tokens are gone, CorruptTreeError with the rows that
        are damaged, StoreError (disk).
        """
        self._require_raw(start, stop)
        if stop > self._tokens.count:
            self._tokens.refresh()
        return self._tokens.read(start, stop)

    def _require_raw(self, start: int, stop: int) -> None:
        if self.sealed and (gone := self.sealed.overlapping(start, stop)):
            raise SealedSpanError(
                f"tokens {gone[0].start} to {gone[0].stop} of tree {self.tree_id} were {gone[0].kind}: only their gist "
                "is left. What was compacted comes back with: megacontext tree curate --restore"
            )

    def append(self, tokens: NDArray[np.uint32], at: int | None = None) -> int:
        """Commit ``tokens``, uint32 ``[n]``, behind the last one; returns the new length.

        ``at``: where the caller believes the end to be. Holders of the same tree pass it to notice that another one
        extended the tree first. Raises StoreError (not the writer, ``at`` is not the end, disk full).
        """
        if self._writer is None:
            raise StoreError(f"{self.path} is open for reading; only its writer can append")
        with self._append_lock:
            length = self._writer.count
            if at is not None and at != length:
                raise StoreError(
                    f"tree {self.tree_id} ends at token {length}, not at {at}: another request extended it"
                )
            return self._writer.append(tokens)

    def fill(self, count: int, copy: Callable[[int], None], pages: NDArray[np.uint32], tail: int) -> None:
        """Commit the first ``count`` tokens, which ``copy`` puts into the empty file; as of ``LevelWriter.fill``."""
        assert self._writer is not None, "only the writer can fill a tree"
        self._writer.fill(count, copy, pages, tail)

    def gist_path(self, level: int) -> Path:
        """File of the gists of ``level`` (1 or more); it need not exist."""
        assert level >= 1
        return level_path(self.path, level)

    def gist_count(self, level: int) -> int:
        """Committed gists of ``level``; 0 when there is no file yet. Cheap enough for polling."""
        return read_count(self.gist_path(level))

    def drop_gists(self) -> None:
        """Delete all gists, to be rebuilt from LOD0. Raises StoreError when this handle is not the writer."""
        if not self.writable:
            raise StoreError(f"{self.path} is open for reading; only its writer can drop gists")
        for level in self.gist_levels():
            self._drop(level)

    def _drop(self, level: int) -> None:
        remove_level(self.gist_path(level))

    def gists(self, level: int, start: int, stop: int) -> NDArray[Any]:
        """Gists ``[start, stop)`` of ``level``: read-only view ``[n, d]``. A refresh may change it; see ``read_gists``.

        Raises IndexError beyond ``gist_count``, CorruptTreeError, StoreError.
        """
        with self._gist_reader(level) as reader:
            return reader.rows(start, stop)

    def read_gists(self, level: int, start: int, stop: int) -> NDArray[Any]:
        """Gists ``[start, stop)`` of ``level`` as a checked copy ``[n, d]``; raises what ``gists`` does."""
        if self.sealed:
            for node in range(start, stop):
                if self.sealed.hides(level, node):
                    raise SealedSpanError(f"gist {node} of level {level} of tree {self.tree_id} is gone: it is sealed")
        with self._gist_reader(level) as reader:
            return reader.read(start, stop)

    def _gist_reader(self, level: int) -> closing[LevelReader]:
        try:
            return closing(LevelReader(self.gist_path(level)))
        except FileNotFoundError:
            raise IndexError(f"tree {self.tree_id} has no gists of level {level}") from None
        except OSError as error:
            raise StoreError(f"cannot read {self.gist_path(level)}: {error.strerror}") from error

    def gist_levels(self) -> list[int]:
        """Levels that have a gist file, ascending."""
        return gist_levels(self.path)

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
        """Release the files and the locks; may be called twice."""
        self._tokens.close()
        self._give_up_writing()
        fd, self._use_fd = self._use_fd, -1
        unlock(fd)

    def _give_up_writing(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        fd, self._lock_fd = self._lock_fd, -1
        unlock(fd)


def gist_levels(path: Path) -> list[int]:
    """Levels of the gist files in a tree folder, ascending."""
    names = (file.stem[3:] for file in path.glob("LOD*.ctx"))
    return sorted(int(name) for name in names if name.isdecimal() and int(name) >= 1)


def _token_header(model_fingerprint: bytes) -> Header:
    return Header(0, RowType.UINT32, 1, 0, model_fingerprint, bytes(16))
