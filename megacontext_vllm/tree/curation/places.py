"""Where curation keeps what it took away: ``<store>/archive/<namespace>/<tree id>/``.

``<action id>.mctx``  the rows below a compacted node (``dropped.py``)
``<action id>.tree``  says that action archived or deleted the whole tree: what kind, and when
``tree/``             that tree
"""

import json
import os
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError
from megacontext_vllm.tree.curation.actions import is_action_id
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.store.places import is_namespace, is_tree_id, tree_folder

ROWS_SUFFIX, MARKER_SUFFIX, DRAFT_SUFFIX = ".mctx", ".tree", ".tmp"
TREE = "tree"


def archive_folder(store: Path, namespace: str, tree_id: str) -> Path:
    """Folder of what was taken from a tree, there or not. Raises RequestError for what cannot be one."""
    if not is_namespace(namespace) or not is_tree_id(tree_id):
        raise RequestError(f"no tree {tree_id[:80]!r} in namespace {namespace[:80]!r}: they are hexadecimal digits")
    return store / "archive" / namespace / tree_id


def archived_rows(archive: Path, action_id: str) -> Path:
    """Raises RequestError for an id with anything but ``0-9``, ``a-f`` and ``-``."""
    return archive / (checked_action_id(action_id) + ROWS_SUFFIX)


def tree_marker(archive: Path, action_id: str) -> Path:
    """Raises RequestError like ``archived_rows``."""
    return archive / (checked_action_id(action_id) + MARKER_SUFFIX)


def checked_action_id(action_id: str) -> str:
    if not is_action_id(action_id):
        raise RequestError(f"{action_id[:80]!r} is no action: an action is named by hexadecimal digits")
    return action_id


def make_archive(archive: Path) -> None:
    """Make the folder, its name safe on the disk. Raises OSError."""
    if archive.is_dir():
        return
    archive.mkdir(parents=True, exist_ok=True)
    for folder in (archive.parent, archive.parent.parent, archive.parent.parent.parent):
        sync_path(folder)


def who_is(store: Path, folder: Path) -> tuple[str, str]:
    """Namespace and id of the tree in ``folder``, there or not. Raises CorruptTreeError, RequestError."""
    try:
        meta = read_meta(folder)
    except CorruptTreeError:
        raise
    except StoreError:  # not there: archived, maybe
        archive_folder(store, folder.parent.name, folder.name)
        return folder.parent.name, folder.name
    try:
        archive_folder(store, meta["namespace"], meta["tree_id"])
    except RequestError as error:
        raise CorruptTreeError(f"{folder}/meta.json is damaged: {error}") from None
    return meta["namespace"], meta["tree_id"]


def require_in_store(store: Path, folder: Path, namespace: str, tree_id: str) -> None:
    """Whole trees are moved only out of their own place. Raises RequestError."""
    place = tree_folder(store / "trees", namespace, tree_id)
    if folder.absolute() != place.absolute():
        raise RequestError(f"{folder} is not the place of tree {tree_id} in the store {store}: {place} is")


def write_marker(path: Path, data: dict[str, Any]) -> None:
    """On the disk when this returns. Raises OSError."""
    draft = path.with_name(path.name + DRAFT_SUFFIX)
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(data) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_path(path.parent)
