"""Bring the index in line with the trees on disk when a store is opened, and clear what crashes left behind."""

import logging
import shutil
import time
from pathlib import Path

from megacontext_vllm.errors import FingerprintMismatchError, StoreError, UnknownTreeError
from megacontext_vllm.tree.store.index import TreeIndex
from megacontext_vllm.tree.store.prefix_hash import chained_hashes
from megacontext_vllm.tree.tree import DELETED_SUFFIX, MegaContextTree

logger = logging.getLogger(__name__)

LEFTOVER_AGE_S = 3600.0
"""A folder that is no tree yet may be one that another process is creating; after an hour it is a leftover."""


def recover(trees: Path, index: TreeIndex, model_fingerprint: bytes) -> None:
    """Index the trees that are only on disk, forget those that are only in the index.

    ``trees``: the folder ``<store>/trees``. Removes half-deleted folders and old ones that never became a tree or
    never got a token; damaged trees stay for a person to look at. Raises StoreError when the index fails.
    """
    known = index.keys()
    for namespace, tree_id in known:
        if not (trees / namespace / tree_id / "meta.json").exists():
            index.remove(namespace, tree_id)
    for folder in sorted(trees.glob("*/*")):
        if folder.name.endswith(DELETED_SUFFIX):
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder.parent.name, folder.name) not in known:
            _adopt(folder, index, model_fingerprint)


def _adopt(folder: Path, index: TreeIndex, model_fingerprint: bytes) -> None:
    try:
        tree = MegaContextTree.open(folder, model_fingerprint=model_fingerprint, writable=False)
    except FingerprintMismatchError:
        return
    except UnknownTreeError:
        _remove_leftover(folder)
        return
    except StoreError as error:
        logger.warning("tree folder %s cannot be used: %s", folder, error)
        return
    try:
        length = tree.length
        if (tree.namespace, tree.tree_id) != (folder.parent.name, folder.name):
            logger.warning("tree folder %s was moved: it is tree %s of %s", folder, tree.tree_id, tree.namespace)
        elif length > 0:
            index.record(tree.namespace, tree.tree_id, length, tree.created, chained_hashes(tree.tokens(0, length)))
        else:
            _remove_leftover(folder)
    finally:
        tree.close()


def _remove_leftover(folder: Path) -> None:
    try:
        old = time.time() - folder.stat().st_mtime > LEFTOVER_AGE_S
    except OSError:
        return
    if old:
        shutil.rmtree(folder, ignore_errors=True)
