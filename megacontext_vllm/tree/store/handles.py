"""The trees that this process has open, each through one handle that all its holders share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from megacontext_vllm.errors import CorruptTreeError, StoreError, TreeLockedError
from megacontext_vllm.tree.files.durability import Durability
from megacontext_vllm.tree.store.places import tree_folder
from megacontext_vllm.tree.tree import MegaContextTree


@dataclass
class Held:
    """A tree that somebody in this process holds."""

    tree: MegaContextTree
    holders: int
    anchored: int = 0
    """Anchors of this tree that are surely in the index."""
    last_anchor: bytes = b""
    """The hash at the last of them."""
    size: int = 0
    """Bytes on the disk when it was last looked at."""


class Handles:
    """The open trees of one model. Not thread-safe: the library's lock guards it."""

    def __init__(self, trees: Path, model_fingerprint: bytes, durability: Durability) -> None:
        self._trees = trees
        self._model = model_fingerprint
        self._durability = durability
        self._held: dict[tuple[str, str], Held] = {}

    def __len__(self) -> int:
        return len(self._held)

    def folder(self, namespace: str, tree_id: str) -> Path:
        """Where a tree lies. Raises UnknownTreeError for what cannot be one."""
        return tree_folder(self._trees, namespace, tree_id)

    def create(self, namespace: str, tree_id: str) -> MegaContextTree:
        """Make an empty tree and hold it. Raises StoreError."""
        tree = MegaContextTree.create(
            self.folder(namespace, tree_id),
            tree_id=tree_id,
            namespace=namespace,
            model_fingerprint=self._model,
            durability=self._durability,
        )
        self._held[namespace, tree_id] = Held(tree, holders=1)
        return tree

    def hold(self, namespace: str, tree_id: str) -> MegaContextTree:
        """Hold a stored tree, as its writer if there is no other. Raises UnknownTreeError, StoreError."""
        entry = self._held.get((namespace, tree_id))
        if entry is None:
            try:
                tree = self._open(namespace, tree_id, writable=True)
            except TreeLockedError:
                tree = self._open(namespace, tree_id, writable=False)
            entry = self._held[namespace, tree_id] = Held(tree, holders=0)
        entry.holders += 1
        return entry.tree

    def held(self, tree: MegaContextTree) -> Held:
        """What is known of a tree that is held."""
        entry = self._held.get((tree.namespace, tree.tree_id))
        assert entry is not None, f"tree {tree.tree_id} is not held"
        assert entry.tree is tree, f"tree {tree.tree_id} is held through another handle"
        return entry

    def forget(self, tree: MegaContextTree) -> None:
        """Hold a tree no longer; closing it is the caller's."""
        del self._held[tree.namespace, tree.tree_id]

    @contextmanager
    def peek(self, namespace: str, tree_id: str) -> Iterator[MegaContextTree]:
        """Read a tree without holding it, and without locking other writers out."""
        entry = self._held.get((namespace, tree_id))
        if entry is not None:
            yield entry.tree
            return
        tree = self._open(namespace, tree_id, writable=False)
        try:
            yield tree
        finally:
            tree.close()

    def lengths(self, namespace: str) -> dict[str, int]:
        """Tokens of each held tree of a namespace, as of now."""
        return {
            tree_id: entry.tree.length for (owner, tree_id), entry in self._held.items() if owner == namespace
        }

    def close(self) -> None:
        """Close every tree, held or not."""
        for entry in self._held.values():
            entry.tree.close()
        self._held.clear()

    def _open(self, namespace: str, tree_id: str, writable: bool) -> MegaContextTree:
        folder = self.folder(namespace, tree_id)
        tree = MegaContextTree.open(
            folder, model_fingerprint=self._model, writable=writable, durability=self._durability
        )
        if (tree.namespace, tree.tree_id) != (namespace, tree_id):
            tree.close()
            raise CorruptTreeError(f"{folder} holds another tree than its name says; it was moved or copied by hand")
        return tree


def is_writer(tree: MegaContextTree) -> bool:
    """Whether the handle is the tree's writer, or could be made so."""
    try:
        tree.become_writer()
    except StoreError:
        return False
    return True
