"""The library: all trees of a store. It finds the tree that continues a history, forks it, or makes a new one."""

import logging
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError, TreeLockedError, UnknownTreeError
from megacontext_vllm.tree.fork import copy_prefix
from megacontext_vllm.tree.store.index import TreeIndex, TreeInfo
from megacontext_vllm.tree.store.match import Match, common_prefix, longest_matches
from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes
from megacontext_vllm.tree.store.recovery import recover
from megacontext_vllm.tree.tree import MegaContextTree

__all__ = ["Acquired", "TreeInfo", "TreeLibrary", "namespace_of"]

logger = logging.getLogger(__name__)

# Both become folder names, so nothing else may pass: no dots, no slashes.
_NAMESPACE = re.compile(r"default|[0-9a-f]{1,64}")
_TREE_ID = re.compile(r"[0-9a-f]{32}")


def namespace_of(cache_salt: str | None) -> str:
    """Namespace of a request. The salt is a secret of the client's, so only its hash reaches the disk."""
    if cache_salt is None:
        return "default"
    return blake2b(cache_salt.encode("utf-8", "surrogatepass"), digest_size=16, person=b"mctx namespace").hexdigest()


@dataclass(frozen=True)
class Acquired:
    """A tree that holds a request's history; give it back with ``TreeLibrary.release``."""

    tree: MegaContextTree
    reused: int
    """Leading tokens that were stored before this call, in this tree or in the one that it was forked from."""
    created: bool
    """Whether this call made the tree, new or forked."""


@dataclass
class _Open:
    tree: MegaContextTree
    holders: int
    anchored: int
    """Anchors of this tree that are surely in the index."""


class TreeLibrary:
    """All trees of one store that belong to one model. Any thread may call it; one lock serialises the calls.

    ``store``: folder, made if missing. ``model_fingerprint``: 16 bytes; trees of other models are left alone.
    Raises StoreError when the folder or its index cannot be used.
    """

    def __init__(self, store: Path, model_fingerprint: bytes) -> None:
        assert len(model_fingerprint) == 16
        self._trees = Path(store) / "trees"
        self._model = model_fingerprint
        self._lock = threading.RLock()
        self._open: dict[tuple[str, str], _Open] = {}
        try:
            self._trees.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the store {store}: {error.strerror}") from error
        self._index = TreeIndex(Path(store) / "index.sqlite", model_fingerprint)
        recover(self._trees, self._index, model_fingerprint)

    def acquire(self, namespace: str, tokens: NDArray[np.uint32]) -> Acquired:
        """A tree of ``namespace`` whose first tokens are exactly ``tokens``, reusing as much stored history as exists.

        ``tokens``: uint32 ``[n]``. A tree that is a prefix of ``tokens`` is extended in place (also while other
        requests of this process hold it: their tokens do not move), one that goes on behind ``tokens`` is used as it
        is, one that diverges, or that another process is writing, is forked. Less than ``ANCHOR`` common tokens are
        not worth a match. Raises StoreError (disk full, index failure); then nothing stays held.
        """
        assert tokens.ndim == 1
        assert tokens.dtype == np.uint32
        if not _NAMESPACE.fullmatch(namespace):
            raise RequestError(f"{namespace!r} is not a namespace")
        hashes = chained_hashes(tokens)
        with self._lock:
            matches = longest_matches(self._index, namespace, tokens, hashes, self._peek)
            continued = (self._continue(namespace, match, tokens) for match in matches)
            acquired = next(filter(None, continued), None)
            if acquired is None:
                acquired = self._create(namespace, matches[0] if matches else None, tokens)
            tree = acquired.tree
            try:
                # Anchors come after the committed tokens: an index entry may be missing, but never ahead of the file.
                self._index.record(namespace, tree.tree_id, tree.length, tree.created, hashes)
            except BaseException:
                (self.discard if acquired.created else self.release)(tree)
                raise
            entry = self._entry(tree)
            entry.anchored = max(entry.anchored, len(hashes))
            return acquired

    def get(self, namespace: str, tree_id: str) -> MegaContextTree:
        """Hold a stored tree by its id; it is writable unless another process is writing it.

        Raises UnknownTreeError for malformed, absent and other namespaces' ids alike, so that nobody learns which
        trees others have; FingerprintMismatchError, CorruptTreeError, StoreError.
        """
        with self._lock:
            try:
                return self._hold(namespace, tree_id)
            except UnknownTreeError:
                raise UnknownTreeError(f"no tree {tree_id!r}; list the stored trees to see what can be used") from None

    def release(self, tree: MegaContextTree) -> None:
        """Let go of a tree; the last holder closes and unlocks it. Never raises for what a full disk can cause."""
        with self._lock:
            entry = self._entry(tree)
            entry.holders -= 1
            if entry.holders:
                return
            del self._open[tree.namespace, tree.tree_id]
            try:
                self._record_growth(entry)
            except StoreError as error:
                logger.warning("tree %s is kept, but its index entry is out of date: %s", tree.tree_id, error)
            finally:
                tree.close()

    def discard(self, tree: MegaContextTree) -> None:
        """Like ``release``; deletes the tree as well, unless someone else holds it or another process writes it."""
        with self._lock:
            entry = self._entry(tree)
            if entry.holders > 1 or not self._is_writer(tree):
                self.release(tree)
                return
            del self._open[tree.namespace, tree.tree_id]
            try:
                self._index.remove(tree.namespace, tree.tree_id)
            except StoreError as error:
                logger.warning("tree %s is deleted, but its index entry stays: %s", tree.tree_id, error)
            tree.delete()

    def open_trees(self) -> int:
        """Trees held by someone in this process."""
        with self._lock:
            return len(self._open)

    def list(self, namespace: str) -> list[TreeInfo]:
        """Stored trees of a namespace, the last used first; lengths of held trees are current."""
        with self._lock:
            infos = self._index.trees(namespace)
            held = {tree_id: entry.tree for (owner, tree_id), entry in self._open.items() if owner == namespace}
            return [replace(i, length=held[i.tree_id].length) if i.tree_id in held else i for i in infos]

    def close(self) -> None:
        """Close every tree, held or not, and the index."""
        with self._lock:
            for entry in self._open.values():
                entry.tree.close()
            self._open.clear()
            self._index.close()

    def _continue(self, namespace: str, match: Match, tokens: NDArray[np.uint32]) -> Acquired | None:
        """Use or extend the matched tree itself; None when it takes a fork."""
        if match.common not in (len(tokens), match.length):
            return None
        try:
            tree = self._hold(namespace, match.tree_id)
        except StoreError as error:
            logger.warning("tree %s is skipped: %s", match.tree_id, error)
            return None
        try:
            # Looked at again, now as the writer: until a moment ago another process may have been extending it.
            length = tree.length
            common = common_prefix(tree.tokens(0, length), tokens)
            if common < len(tokens) and common == length and self._is_writer(tree):
                tree.append(tokens[common:], at=common)
                return Acquired(tree, reused=common, created=False)
        except BaseException:
            self.release(tree)
            raise
        if common == len(tokens):
            return Acquired(tree, reused=common, created=False)
        self.release(tree)
        return None

    def _create(self, namespace: str, source: Match | None, tokens: NDArray[np.uint32]) -> Acquired:
        """Make a new tree, starting with what it shares with ``source``."""
        tree_id = uuid.uuid4().hex
        tree = MegaContextTree.create(
            self._folder(namespace, tree_id), tree_id=tree_id, namespace=namespace, model_fingerprint=self._model
        )
        self._open[namespace, tree_id] = _Open(tree, holders=1, anchored=0)
        try:
            if source is not None:
                try:
                    with self._peek(namespace, source.tree_id) as parent:
                        copy_prefix(parent, tree, source.common)
                except StoreError as error:
                    logger.warning("tree %s cannot be forked, its tokens are stored anew: %s", source.tree_id, error)
            reused = tree.length
            tree.append(tokens[reused:])
        except BaseException:
            self.discard(tree)
            raise
        return Acquired(tree, reused=reused, created=True)

    def _hold(self, namespace: str, tree_id: str) -> MegaContextTree:
        entry = self._open.get((namespace, tree_id))
        if entry is None:
            try:
                tree = self._open_tree(namespace, tree_id, writable=True)
            except TreeLockedError:
                tree = self._open_tree(namespace, tree_id, writable=False)
            entry = self._open[namespace, tree_id] = _Open(tree, holders=0, anchored=0)
        entry.holders += 1
        return entry.tree

    @contextmanager
    def _peek(self, namespace: str, tree_id: str) -> Iterator[MegaContextTree]:
        """Read a tree without holding it, and without locking others out."""
        entry = self._open.get((namespace, tree_id))
        if entry is not None:
            yield entry.tree
            return
        tree = self._open_tree(namespace, tree_id, writable=False)
        try:
            yield tree
        finally:
            tree.close()

    def _open_tree(self, namespace: str, tree_id: str, writable: bool) -> MegaContextTree:
        folder = self._folder(namespace, tree_id)
        tree = MegaContextTree.open(folder, model_fingerprint=self._model, writable=writable)
        if (tree.namespace, tree.tree_id) != (namespace, tree_id):
            tree.close()
            raise CorruptTreeError(f"{folder} holds another tree than its name says; it was moved or copied by hand")
        return tree

    def _is_writer(self, tree: MegaContextTree) -> bool:
        try:
            tree.become_writer()
        except StoreError:
            return False
        return True

    def _record_growth(self, entry: _Open) -> None:
        """Index what was appended while the tree was held; only the writer knows that the tree still exists."""
        tree = entry.tree
        if tree.writable:
            length = tree.length
            hashes = chained_hashes(tree.tokens(0, length)) if length // ANCHOR > entry.anchored else []
            self._index.record(tree.namespace, tree.tree_id, length, tree.created, hashes)

    def _entry(self, tree: MegaContextTree) -> _Open:
        entry = self._open.get((tree.namespace, tree.tree_id))
        assert entry is not None, f"tree {tree.tree_id} is not held"
        assert entry.tree is tree, f"tree {tree.tree_id} is held through another handle"
        return entry

    def _folder(self, namespace: str, tree_id: str) -> Path:
        if not _NAMESPACE.fullmatch(namespace) or not _TREE_ID.fullmatch(tree_id):
            raise UnknownTreeError(f"no tree {tree_id!r}")
        return self._trees / namespace / tree_id
