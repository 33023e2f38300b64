"""What is in a store, read without opening it as a server would: trees of every model, damaged ones too."""

import argparse
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError, UnknownTreeError
from megacontext_vllm.tree.files.level_reader import LevelReader
from megacontext_vllm.tree.nodes import num_nodes
from megacontext_vllm.tree.store.index import read_last_accesses
from megacontext_vllm.tree.tree import MegaContextTree


@dataclass(frozen=True)
class StoredLevel:
    """One ``LODn.ctx``. ``nodes``: complete nodes over the tree's tokens, so rows that could be there."""

    level: int
    rows: int
    nodes: int
    row_type: str
    dim: int
    gist_fingerprint: str | None
    bytes_on_disk: int
    damage: str | None = None


@dataclass(frozen=True)
class StoredTree:
    """What is on disk of one tree; times are Unix seconds. ``damage``: why it cannot be read, else None."""

    tree_id: str
    namespace: str
    path: str
    tokens: int = 0
    levels: list[StoredLevel] = field(default_factory=list)
    bytes_on_disk: int = 0
    created: float | None = None
    last_access: float | None = None
    model_fingerprint: str | None = None
    name: str | None = None
    pinned: bool = False
    damage: str | None = None


def read_trees(store: Path, namespace: str | None) -> list[StoredTree]:
    """All trees of a store, or of one namespace, the last used first."""
    uses = last_accesses(store)
    trees = []
    for folder in tree_folders(store, namespace):
        try:
            trees.append(read_tree(folder, uses))
        except (UnknownTreeError, FileNotFoundError):  # deleted while we looked
            continue
    return sorted(trees, key=lambda tree: (tree.namespace, -(tree.last_access or tree.created or 0)))


def read_tree(folder: Path, uses: dict[tuple[str, str], float]) -> StoredTree:
    """Describe the tree in ``folder``, damaged or not; ``uses`` as of ``last_accesses``. Raises UnknownTreeError."""
    name, owner = folder.name, folder.parent.name
    size = sum(file.stat().st_size for file in folder.glob("*") if file.is_file())
    last_access = uses.get((owner, name))
    try:
        with closing(open_tree(folder)) as tree:
            length = tree.length
            return StoredTree(
                tree_id=tree.tree_id,
                namespace=tree.namespace,
                path=str(folder),
                tokens=length,
                levels=[read_level(file, length) for file in level_files(folder)],
                bytes_on_disk=size,
                created=tree.created,
                last_access=last_access,
                model_fingerprint=tree.model_fingerprint.hex(),
                name=tree.name,
                pinned=tree.pinned,
            )
    except UnknownTreeError:
        raise
    except StoreError as error:
        return StoredTree(name, owner, str(folder), bytes_on_disk=size, last_access=last_access, damage=str(error))


def open_tree(folder: Path) -> MegaContextTree:
    """A reading handle, whatever model the tree belongs to. Raises UnknownTreeError, CorruptTreeError, StoreError."""
    return MegaContextTree.open(folder, model_fingerprint=None, writable=False)


def level_files(folder: Path) -> list[Path]:
    """``LOD0.ctx``, ``LOD1.ctx`` ... of a tree, by level."""
    files = (file for file in folder.glob("LOD*.ctx") if file.stem[3:].isdecimal())
    return sorted(files, key=lambda file: int(file.stem[3:]))


def read_level(file: Path, length: int) -> StoredLevel:
    level, size = int(file.stem[3:]), file.stat().st_size
    nodes = num_nodes(length, level)
    try:
        with closing(LevelReader(file)) as reader:
            header = reader.header
            gist = header.gist_fingerprint.hex() if level else None
            return StoredLevel(level, reader.count, nodes, header.dtype.name.lower(), header.dim, gist, size)
    except (CorruptTreeError, OSError) as error:
        return StoredLevel(level, 0, nodes, "?", 0, None, size, damage=str(error))


def last_accesses(store: Path) -> dict[tuple[str, str], float]:
    """``(namespace, tree id)`` to Unix seconds, out of the store's index.

    The trees are the truth and the index is only asked for what they do not say: one that is missing or damaged costs
    a column, and mending it is for the server.
    """
    try:
        return read_last_accesses(store / "index.sqlite")
    except StoreError as error:
        print(f"megacontext: warning: {error}; last uses are unknown", file=sys.stderr)
        return {}


def tree_folders(store: Path, namespace: str | None) -> list[Path]:
    """Folders of all trees of a store, or of one namespace. A folder without ``meta.json`` is not a tree (yet)."""
    if not store.is_dir():
        raise StoreError(f"there is no store in {store}; a server makes it, name its folder with --store")
    owners = (store / "trees").iterdir() if (store / "trees").is_dir() else iter(())
    return sorted(
        folder
        for owner in owners
        if owner.is_dir() and (namespace is None or owner.name == namespace)
        for folder in owner.iterdir()
        if not folder.name.startswith(".") and (folder / "meta.json").exists()
    )


def find_folder(store: Path, namespace: str | None, prefix: str) -> Path:
    """The folder of the one tree whose id starts with ``prefix``. Raises UnknownTreeError, RequestError."""
    found = [folder for folder in tree_folders(store, namespace) if folder.name.startswith(prefix)]
    where = place_text(store, namespace)
    if not found:
        raise UnknownTreeError(f"no tree {prefix!r} in {where}; list what there is with: megacontext tree ls")
    if len(found) > 1:
        raise RequestError(f"{len(found)} trees in {where} begin with {prefix!r}; give more of the id, or --namespace")
    return found[0]


def chosen_folders(options: argparse.Namespace) -> list[Path]:
    """Folders of the tree that ``options`` name, or of all of the store or namespace. Raises like ``find_folder``."""
    if options.tree is None:
        return tree_folders(options.store, options.namespace)
    return [find_folder(options.store, options.namespace, options.tree)]


def place_text(store: Path, namespace: str | None) -> str:
    return f"namespace {namespace} of {store}" if namespace else str(store)
