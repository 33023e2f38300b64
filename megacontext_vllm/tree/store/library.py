"""The library: all trees of a store. It finds the tree that continues a history, forks it, or makes a new one."""

import logging
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import RequestError, StoreError, UnknownTreeError
from megacontext_vllm.tree.files.durability import NEVER, Durability
from megacontext_vllm.tree.fork import copy_prefix
from megacontext_vllm.tree.store.chain import chain_of
from megacontext_vllm.tree.store.handles import Handles, Held, is_writer
from megacontext_vllm.tree.store.index import TreeIndex, TreeInfo
from megacontext_vllm.tree.store.match import Match, common_with, longest_matches
from megacontext_vllm.tree.store.names import Names
from megacontext_vllm.tree.store.places import disk_bytes, is_namespace
from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes
from megacontext_vllm.tree.store.recovery import recover
from megacontext_vllm.tree.store.retention import Retention, RetentionPolicy
from megacontext_vllm.tree.tree import MegaContextTree

__all__ = ["Acquired", "NamespaceStats", "StoreStats", "TreeInfo", "TreeLibrary", "namespace_of"]

logger = logging.getLogger(__name__)

_DELETED_ON_OPEN, _DELETED_PER_RELEASE = 1000, 32


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


@dataclass(frozen=True)
class NamespaceStats:
    """Sums over the trees of a namespace. ``bytes``: on the disk."""

    trees: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class StoreStats(NamespaceStats):
    """Sums over all trees of one model in a store, and by namespace."""

    namespaces: dict[str, NamespaceStats]


class TreeLibrary:
    """All trees of one store that belong to one model. Any thread may call it; one lock serialises the calls.

    ``store``: folder, made if missing. ``model_fingerprint``: 16 bytes; trees of other models are left alone, but for
    ``retention``, which bounds the store as a whole. ``durability``: when what is written is forced to the disk.
    Several processes may have one store open. Raises StoreError when the folder or its index cannot be used.
    """

    def __init__(
        self,
        store: Path,
        model_fingerprint: bytes,
        retention: RetentionPolicy | None = None,
        durability: Durability = NEVER,
    ) -> None:
        assert len(model_fingerprint) == 16
        self._store = Path(store)
        trees = self._store / "trees"
        self._lock = threading.RLock()
        self._durability = durability
        self._handles = Handles(trees, model_fingerprint, durability)
        try:
            trees.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot create the store {store}: {error.strerror}") from error
        self._index = TreeIndex(self._store / "index.sqlite", model_fingerprint)
        self._names = Names(trees, self._index)
        self._retention = Retention(self._store, self._index, retention)
        try:
            recover(trees, self._index, self._names)
        except BaseException:
            self._index.close()
            raise
        self._retention.enforce(_DELETED_ON_OPEN)

    def acquire(self, namespace: str, tokens: NDArray[np.uint32]) -> Acquired:
        """A tree of ``namespace`` whose first tokens are exactly ``tokens``, reusing as much stored history as exists.

        ``tokens``: uint32 ``[n]``. A tree that is a prefix of ``tokens`` is extended in place (also while other
        requests of this process hold it: their tokens do not move), one that goes on behind ``tokens`` is used as it
        is, one that diverges, or that another process is writing, is forked. Less than ``ANCHOR`` common tokens are
        not worth a match. Where a span of the tree is sealed, its hashes stand for the tokens that are gone. Raises
        StoreError (disk full, index failure); then nothing stays held.
        """
        assert tokens.ndim == 1
        assert tokens.dtype == np.uint32
        if not is_namespace(namespace):
            raise RequestError(f"{namespace!r} is not a namespace")
        hashes = chained_hashes(tokens)
        with self._lock:
            folder = self._store / "trees" / namespace
            matches = longest_matches(self._index, namespace, tokens, hashes, self._handles.peek, folder)
            continued = (self._continue(namespace, match, tokens, hashes) for match in matches)
            acquired = next(filter(None, continued), None)
            if acquired is None:
                acquired = self._create(namespace, matches[0] if matches else None, tokens)
            tree = acquired.tree
            entry = self._handles.held(tree)
            size = disk_bytes(tree.path)
            try:
                # Anchors come after the committed tokens: an index entry may be missing, but never ahead of the file.
                self._index.record(namespace, tree.tree_id, tree.length, tree.created, hashes, size=size)
            except BaseException:
                (self.discard if acquired.created else self.release)(tree)
                raise
            if len(hashes) > entry.anchored:
                entry.anchored, entry.last_anchor = len(hashes), hashes[-1]
            self._retention.used(namespace, tree.tree_id)
            return acquired

    def get(self, namespace: str, tree_id: str) -> MegaContextTree:
        """Hold a stored tree by its id; it is writable unless another process is writing it.

        Raises UnknownTreeError for malformed, absent and other namespaces' ids alike, so that nobody learns which
        trees others have; FingerprintMismatchError, CorruptTreeError, StoreError.
        """
        with self._lock:
            try:
                tree = self._handles.hold(namespace, tree_id)
            except UnknownTreeError:
                raise UnknownTreeError(f"no tree {tree_id!r}; list the stored trees to see what can be used") from None
            entry = self._handles.held(tree)
            entry.size = entry.size or disk_bytes(tree.path)
            self._retention.used(namespace, tree_id)
            return tree

    def find(self, namespace: str, name: str) -> MegaContextTree:
        """Hold a stored tree by its name. Raises UnknownTreeError, RequestError (no name), and what ``get`` does."""
        return self.get(namespace, self._names.find(namespace, name))

    def release(self, tree: MegaContextTree) -> None:
        """Let go of a tree; the last holder closes and unlocks it. Never raises for what a full disk can cause."""
        with self._lock:
            entry = self._handles.held(tree)
            entry.holders -= 1
            self._retention.used(tree.namespace, tree.tree_id)
            if entry.holders:
                return
            self._handles.forget(tree)
            grown = False
            try:
                grown = self._record_growth(entry)
            except StoreError as error:
                logger.warning("tree %s is kept, but its index entry is out of date: %s", tree.tree_id, error)
            finally:
                tree.close()
        if grown:
            self._retention.enforce(_DELETED_PER_RELEASE)

    def discard(self, tree: MegaContextTree) -> None:
        """Like ``release``; deletes the tree as well, unless someone else, in any process, has it open."""
        with self._lock:
            entry = self._handles.held(tree)
            if entry.holders > 1 or not is_writer(tree):
                self.release(tree)
                return
            self._handles.forget(tree)
            tree.close()
            try:
                self._names.delete(tree.namespace, tree.tree_id)
            except StoreError as error:
                logger.warning("tree %s is not deleted: %s", tree.tree_id, error)

    def rename(self, namespace: str, tree_id: str, name: str | None) -> None:
        """Call a tree ``name``; None: nothing any more. A name is one tree's only, by model and namespace.

        Raises RequestError (taken, malformed), UnknownTreeError, FingerprintMismatchError, StoreError.
        """
        self._names.rename(namespace, tree_id, name)

    def pin(self, namespace: str, tree_id: str, pinned: bool) -> None:
        """Keep a tree whatever the retention policy says, or no longer. Raises UnknownTreeError, StoreError."""
        self._names.pin(namespace, tree_id, pinned)

    def delete(self, namespace: str, tree_id: str) -> None:
        """Delete a tree. Raises TreeInUseError (someone, in any process, has it open), UnknownTreeError, StoreError."""
        self._names.delete(namespace, tree_id)

    def open_trees(self) -> int:
        """Trees held by someone in this process."""
        with self._lock:
            return len(self._handles)

    def list(self, namespace: str) -> list[TreeInfo]:
        """Stored trees of a namespace, the last used first; lengths of held trees are current."""
        with self._lock:
            infos = self._index.trees(namespace)
            held = self._handles.lengths(namespace)
            return [replace(i, length=held[i.tree_id]) if i.tree_id in held else i for i in infos]

    def stats(self) -> StoreStats:
        """Trees, tokens and bytes of this model in the store, as of each tree's last use."""
        totals = self._index.totals()
        spaces = {name: NamespaceStats(*sums) for name, sums in totals.items()}
        trees, tokens, size = (sum(column) for column in zip((0, 0, 0), *totals.values()))
        return StoreStats(trees, tokens, size, spaces)

    def close(self) -> None:
        """Close every tree, held or not, and the index; what ``durability`` has not forced out yet, it does now."""
        with self._lock:
            self._handles.close()
            self._durability.close()
            self._index.close()

    def _continue(
        self, namespace: str, match: Match, tokens: NDArray[np.uint32], hashes: Sequence[bytes]
    ) -> Acquired | None:
        """Use or extend the matched tree itself; None when it takes a fork."""
        if match.common not in (len(tokens), match.length):
            return None
        try:
            tree = self._handles.hold(namespace, match.tree_id)
        except StoreError as error:
            logger.warning("tree %s is skipped: %s", match.tree_id, error)
            return None
        try:
            # Looked at again, now as the writer: until a moment ago another process may have been extending it.
            length = tree.length
            common = common_with(tree, length, tokens, hashes, known=match.common)
            if common < len(tokens) and common == length and is_writer(tree):
                tree.append(tokens[common:], at=common)
                return Acquired(tree, reused=common, created=False)
        except BaseException:
            self.release(tree)
            raise
        # A history that ends within a sealed span needs its newest tokens raw: a fork has them.
        if common == len(tokens) and not _is_sealed_at(tree, common):
            return Acquired(tree, reused=common, created=False)
        self.release(tree)
        return None

    def _create(self, namespace: str, source: Match | None, tokens: NDArray[np.uint32]) -> Acquired:
        """Make a new tree, starting with what it shares with ``source``."""
        tree = self._handles.create(namespace, uuid.uuid4().hex)
        try:
            if source is not None:
                try:
                    with self._handles.peek(namespace, source.tree_id) as parent:
                        copy_prefix(parent, tree, _raw_prefix(parent, source.common))
                except StoreError as error:
                    logger.warning("tree %s cannot be forked, its tokens are stored anew: %s", source.tree_id, error)
            reused = tree.length
            tree.append(tokens[reused:])
        except BaseException:
            self.discard(tree)
            raise
        return Acquired(tree, reused=reused, created=True)

    def _record_growth(self, entry: Held) -> bool:
        """Index what was appended while the tree was held; only the writer knows that the tree still exists.

        Returns whether the tree takes more of the disk than before.
        """
        tree = entry.tree
        if not tree.writable:
            return False
        length, size = tree.length, disk_bytes(tree.path)
        hashes = chain_of(tree, entry.anchored, entry.last_anchor) if length // ANCHOR > entry.anchored else []
        self._index.record(
            tree.namespace, tree.tree_id, length, tree.created, hashes, first=entry.anchored, size=size
        )
        return size > entry.size


def _raw_prefix(tree: MegaContextTree, stop: int) -> int:
    """How many of the first ``stop`` tokens can be copied: those before the first sealed span."""
    spans = tree.sealed.overlapping(0, stop) if tree.sealed else []
    return min(stop, spans[0].start) if spans else stop


def _is_sealed_at(tree: MegaContextTree, end: int) -> bool:
    """Whether the token before ``end`` is gone."""
    return bool(tree.sealed) and end > 0 and bool(tree.sealed.overlapping(end - 1, end))
