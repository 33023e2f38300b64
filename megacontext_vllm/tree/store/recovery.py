"""Bring the index in line with the trees on disk when a store is opened, and clear what crashes left behind."""

import logging
import shutil
import time
from pathlib import Path

from megacontext_vllm.errors import FingerprintMismatchError, StoreError, TreeLockedError, UnknownTreeError
from megacontext_vllm.tree.files.locks import lock_writer, unlock
from megacontext_vllm.tree.store.chain import chain_of
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.names import Names
from megacontext_vllm.tree.store.places import IMPORT_PREFIX, disk_bytes, last_change, names_lock
from megacontext_vllm.tree.tree import DELETED_SUFFIX, MegaContextTree

logger = logging.getLogger(__name__)

LEFTOVER_AGE_S = 3600.0
"""A folder that is no tree yet may be one that another process is creating; after an hour it is a leftover."""


def recover(trees: Path, index: TreeIndex, names: Names) -> None:
    """Index the trees that are only on disk, forget those that are only in the index.

    ``trees``: the folder ``<store>/trees``. Removes half-deleted and half-imported folders, and old ones that never
    became a tree or never got a token; damaged trees stay for a person to look at. Raises StoreError when the index
    fails.
    """
    names.catch_up()
    known = index.sizes()
    for (namespace, tree_id), size in known.items():
        folder = trees / namespace / tree_id
        if not (folder / "meta.json").exists():
            index.remove(namespace, tree_id)
        elif size == 0:  # of a release that did not note it
            index.resize(namespace, tree_id, disk_bytes(folder))
    for folder in sorted(trees.glob("*/*")):
        if folder.name.endswith(DELETED_SUFFIX):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.name.startswith(IMPORT_PREFIX):
            _remove_import(trees, folder)
        elif (folder.parent.name, folder.name) not in known:
            _adopt(folder, index, names)


def _adopt(folder: Path, index: TreeIndex, names: Names) -> None:
    try:
        tree = MegaContextTree.open(folder, model_fingerprint=index.model, writable=False)
    except FingerprintMismatchError:
        return
    except UnknownTreeError:
        _remove_leftover(folder)
        return
    except StoreError as error:
        logger.warning("tree folder %s cannot be used: %s", folder, error)
        return
    try:
        if (tree.namespace, tree.tree_id) != (folder.parent.name, folder.name):
            logger.warning("tree folder %s was moved: it is tree %s of %s", folder, tree.tree_id, tree.namespace)
        elif tree.length > 0:
            take_in(tree, index, names, used=min(last_change(folder), time.time()))
        else:
            _remove_leftover(folder)
    finally:
        tree.close()


def take_in(tree: MegaContextTree, index: TreeIndex, names: Names, used: float | None = None) -> None:
    """Index a tree that is on the disk only. ``used``: Unix seconds, now if not given. Raises StoreError."""
    size = disk_bytes(tree.path)
    index.record(tree.namespace, tree.tree_id, tree.length, tree.created, chain_of(tree), size=size, used=used)
    names.believe(tree.namespace, tree.tree_id)


def _remove_import(trees: Path, folder: Path) -> None:
    """Remove what an import left that did not live to finish."""
    try:
        with names_lock(trees):  # an import makes its folder and locks it under this one
            unlock(lock_writer(folder))
    except (TreeLockedError, FileNotFoundError):  # somebody is at it, or done
        return
    except OSError as error:
        logger.warning("%s is left over of an import and cannot be removed: %s", folder, error.strerror)
        return
    shutil.rmtree(folder, ignore_errors=True)


def _remove_leftover(folder: Path) -> None:
    try:
        old = time.time() - folder.stat().st_mtime > LEFTOVER_AGE_S
    except OSError:
        return
    if old:
        shutil.rmtree(folder, ignore_errors=True)
