"""Names and pins of trees: the truth is each tree's ``meta.json``, the index finds it.

Both are changed together under the store's ``names.lock``, in which the tree's folder is noted before. Who finds a note
there takes the place of someone who died in between, and brings the index in line with that tree first.
"""

import logging
import os
import unicodedata
from pathlib import Path

from megacontext_vllm.errors import (
    CorruptTreeError,
    FingerprintMismatchError,
    RequestError,
    StoreError,
    UnknownTreeError,
)
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.meta import read_meta, update_meta
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.places import bury, empty_grave, is_namespace, is_tree_id, names_lock, tree_folder

logger = logging.getLogger(__name__)

NAME_LENGTH = 128


def checked_name(name: str) -> str:
    """The name as it is stored (Unicode form NFC). Raises RequestError if it cannot be one."""
    name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= NAME_LENGTH or not name.isprintable() or name != name.strip():
        raise RequestError(
            f"{name[:NAME_LENGTH]!r} cannot be the name of a tree: a name has 1 to {NAME_LENGTH} printable characters "
            "and does not begin or end with a space"
        )
    if is_tree_id(name):
        raise RequestError(f"{name!r} cannot be the name of a tree: it looks like a tree id")
    return name


class Names:
    """Names, pins and deletion of the trees of one model. Any thread and any process may call it at any time."""

    def __init__(self, trees: Path, index: TreeIndex) -> None:
        self._trees = trees
        self._index = index

    def find(self, namespace: str, name: str) -> str:
        """Id of the tree of that name. Raises UnknownTreeError, RequestError, StoreError."""
        name = checked_name(name)
        tree_id = self._index.named(namespace, name)
        if tree_id is not None and self._is_called(namespace, tree_id, name):
            return tree_id
        with names_lock(self._trees) as fd:
            self._finish_what_was_begun(fd)
            if tree_id is not None:
                self._believe_the_tree(namespace, tree_id)
            tree_id = self._index.named(namespace, name)
            if tree_id is None or not self._is_called(namespace, tree_id, name):
                raise UnknownTreeError(f"no tree is called {name!r}; list the stored trees to see what can be used")
            return tree_id

    def rename(self, namespace: str, tree_id: str, name: str | None) -> None:
        """Call a tree ``name``, None: nothing any more. Raises RequestError (malformed, taken), UnknownTreeError."""
        name = None if name is None else checked_name(name)
        with names_lock(self._trees) as fd:
            self._finish_what_was_begun(fd)
            other = None if name is None else self._index.named(namespace, name)
            if other is not None and other != tree_id:
                if self._is_called(namespace, other, str(name)):
                    raise RequestError(f"another tree is called {name!r}; rename or delete that one first")
                self._believe_the_tree(namespace, other)
            self._change(fd, namespace, tree_id, name=name)

    def pin(self, namespace: str, tree_id: str, pinned: bool) -> None:
        """Keep a tree out of retention's reach, or let it be reached. Raises UnknownTreeError, StoreError."""
        with names_lock(self._trees) as fd:
            self._finish_what_was_begun(fd)
            self._change(fd, namespace, tree_id, pinned=pinned)

    def delete(self, namespace: str, tree_id: str) -> None:
        """Remove a tree. Raises TreeInUseError (somebody has it open), UnknownTreeError, StoreError."""
        folder = tree_folder(self._trees, namespace, tree_id)
        try:
            # Under the lock, so that no pin comes between.
            with names_lock(self._trees), claim(self._require(folder)):
                grave = bury(folder)
        except UnknownTreeError:
            self._index.remove(namespace, tree_id)
            raise _unknown(tree_id) from None
        try:
            self._index.remove(namespace, tree_id)
        finally:
            empty_grave(grave)

    def believe(self, namespace: str, tree_id: str) -> None:
        """Bring the index in line with the ``meta.json`` of a tree. Raises StoreError when the index fails."""
        with names_lock(self._trees) as fd:
            self._finish_what_was_begun(fd)
            self._believe_the_tree(namespace, tree_id)

    def catch_up(self) -> None:
        """Bring the index in line with what a process that died had begun. Raises StoreError."""
        with names_lock(self._trees) as fd:
            self._finish_what_was_begun(fd)

    def _require(self, folder: Path) -> Path:
        """Check that a tree of this model, or a damaged one, is there."""
        try:
            if read_meta(folder)["model_fingerprint"] != self._index.model.hex():
                raise FingerprintMismatchError(f"{folder} belongs to another model; start with that one to change it")
        except CorruptTreeError:
            pass
        return folder

    def _change(self, fd: int, namespace: str, tree_id: str, **changes: object) -> None:
        folder = tree_folder(self._trees, namespace, tree_id)
        try:
            self._require(folder)
            os.pwrite(fd, f"{namespace}/{tree_id}".encode(), 0)
            meta = update_meta(folder, **changes)
        except OSError as error:
            raise StoreError(f"cannot change {folder}: {error.strerror}; free disk space, check the rights") from error
        except StoreError:
            if not folder.is_dir():
                raise _unknown(tree_id) from None
            raise
        # Should this fail, the note stays and the next one to come does it.
        if not self._index.label(namespace, tree_id, meta["name"], meta["pinned"]):
            self._believe_the_tree(namespace, tree_id)
        os.ftruncate(fd, 0)

    def _finish_what_was_begun(self, fd: int) -> None:
        namespace, _, tree_id = os.pread(fd, 256, 0).decode("ascii", "replace").partition("/")
        if is_namespace(namespace) and is_tree_id(tree_id):
            self._believe_the_tree(namespace, tree_id)
        if namespace:
            os.ftruncate(fd, 0)

    def _believe_the_tree(self, namespace: str, tree_id: str) -> None:
        try:
            meta = read_meta(tree_folder(self._trees, namespace, tree_id))
        except UnknownTreeError:
            self._index.remove(namespace, tree_id)
            return
        except StoreError as error:
            logger.warning("tree %s is not found by name: %s", tree_id, error)
            self._index.label(namespace, tree_id, None, pinned=True)  # it may have been, so retention leaves it alone
            return
        model = bytes.fromhex(meta["model_fingerprint"])
        if not self._index.label(namespace, tree_id, meta["name"], meta["pinned"], model):
            logger.warning("tree %s is called %r like another tree, and not found by it", tree_id, meta["name"])
            self._index.label(namespace, tree_id, None, meta["pinned"], model)

    def _is_called(self, namespace: str, tree_id: str, name: str) -> bool:
        try:
            return bool(read_meta(tree_folder(self._trees, namespace, tree_id))["name"] == name)
        except StoreError:
            return False


def _unknown(tree_id: str) -> UnknownTreeError:
    return UnknownTreeError(f"no tree {tree_id!r}; list the stored trees to see what there is")
