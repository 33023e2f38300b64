"""Archive and delete whole trees: the folder moves into the archive, in one step, and back again.

Deleting differs in intent only: both can be restored until the archive is purged.
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import CorruptTreeError, MegaContextError, RequestError, StoreError, UnknownTreeError
from megacontext_vllm.tree.curation.actions import Action, CurationPlan
from megacontext_vllm.tree.curation.log import log_entry, try_log, write_log
from megacontext_vllm.tree.curation.pending import finish
from megacontext_vllm.tree.curation.places import (
    TREE,
    archive_folder,
    make_archive,
    require_in_store,
    tree_marker,
    write_marker,
)
from megacontext_vllm.tree.files.durability import sync_path
from megacontext_vllm.tree.files.level_reader import read_count
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.names import Names
from megacontext_vllm.tree.store.places import disk_bytes, last_change, names_lock, tree_folder
from megacontext_vllm.tree.store.recovery import take_in
from megacontext_vllm.tree.tree import TOKENS, MegaContextTree

logger = logging.getLogger(__name__)


def take_tree(store: Path, folder: Path, plan: CurationPlan, action: Action, now: float) -> int:
    """Move a tree out of the store; returns its bytes on the disk. The caller curates the store.

    Raises RequestError (pinned, used since the plan was made, archived before), TreeInUseError, StoreError.
    """
    assert action.action_id is not None
    namespace, tree_id = plan.namespace, plan.tree_id
    require_in_store(store, folder, namespace, tree_id)
    archive = archive_folder(store, namespace, tree_id)
    entry = action.to_json() | {"action": action.action_id}

    def noted(event: str, error: str | None = None) -> dict[str, Any]:
        return log_entry(namespace, tree_id, event, now, error) | entry

    try:
        # Under the lock of the names, so that no pin comes between.
        with names_lock(store / "trees"), claim(folder):
            meta = read_meta(folder)
            if meta["pinned"]:
                raise RequestError("the tree is pinned")
            if read_count(folder / TOKENS) != plan.length or last_change(folder) > plan.created:
                raise RequestError("the tree has grown since the plan was made; make a new plan")
            if (archive / TREE).exists():
                raise RequestError(f"a tree of this id is in {archive} already; restore or purge that one first")
            finish(folder, archive)
            marker = tree_marker(archive, action.action_id)
            if marker.exists() or marker.with_suffix(".mctx").exists():
                raise RequestError(f"{action.action_id} is another action already; make a new plan")
            size = disk_bytes(folder)
            write_log(store, [noted("begin")])
            make_archive(archive)
            write_marker(marker, {"kind": action.kind, "time": now})
            folder.rename(archive / TREE)
            sync_path(archive)
            sync_path(folder.parent)
    except OSError as error:
        try_log(store, [noted("failed", str(error))])
        raise StoreError(f"cannot move {folder} into the archive: {error.strerror}") from error
    _forget(store, namespace, tree_id, meta["model_fingerprint"])
    try_log(store, [noted("done")])
    return size


def is_tree_action(archive: Path, action_id: str) -> bool:
    """Whether this action took the whole tree, and it can be restored."""
    return tree_marker(archive, action_id).exists() and (archive / TREE).exists()


def restore_tree(store: Path, namespace: str, tree_id: str, action_id: str, now: float) -> None:
    """Move an archived tree back. The caller curates the store.

    Raises StoreError, RequestError (there is a tree of that id again).
    """
    archive, folder = archive_folder(store, namespace, tree_id), tree_folder(store / "trees", namespace, tree_id)
    entry = {"kind": "restore", "action": action_id}
    write_log(store, [log_entry(namespace, tree_id, "begin", now) | entry])
    try:
        with names_lock(store / "trees"):
            meta = read_meta(archive / TREE)
            if (meta["namespace"], meta["tree_id"]) != (namespace, tree_id):
                raise CorruptTreeError(f"{archive / TREE} holds another tree: {meta['tree_id']}")
            if folder.exists():
                raise RequestError(f"there is a tree in {folder} again; delete it to restore the archived one")
            folder.parent.mkdir(parents=True, exist_ok=True)
            (archive / TREE).rename(folder)
            sync_path(folder.parent)
            sync_path(archive)
            tree_marker(archive, action_id).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"cannot move {archive / TREE} back: {error.strerror}") from error
    _remember(store, folder, meta["model_fingerprint"])
    try_log(store, [log_entry(namespace, tree_id, "done", now) | entry])


def marker_time(marker: Path) -> float:
    """When the tree was taken, Unix seconds; the time of the file where it does not say. Raises OSError."""
    try:
        return float(json.loads(marker.read_bytes())["time"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        return marker.stat().st_mtime


def _forget(store: Path, namespace: str, tree_id: str, model: str) -> None:
    """Take the tree out of the index. Should this fail, recovery does it with the next opening of the store."""
    if not (store / "index.sqlite").exists():
        return
    try:
        index = TreeIndex(store / "index.sqlite", bytes.fromhex(model))
        try:
            index.remove(namespace, tree_id)
        finally:
            index.close()
    except StoreError as error:
        logger.warning("tree %s is archived, but still in the index: %s", tree_id, error)


def _remember(store: Path, folder: Path, model: str) -> None:
    if not (store / "index.sqlite").exists():
        return
    try:
        index = TreeIndex(store / "index.sqlite", bytes.fromhex(model))
        try:
            tree = MegaContextTree.open(folder, model_fingerprint=None, writable=False)
            try:
                take_in(tree, index, Names(store / "trees", index), used=time.time())
            finally:
                tree.close()
        finally:
            index.close()
    except UnknownTreeError:  # deleted again already
        return
    except MegaContextError as error:
        logger.warning("tree %s is back, and will be found when the store is opened anew: %s", folder.name, error)
