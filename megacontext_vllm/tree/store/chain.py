"""The hash chain of a stored tree, over spans too whose tokens are gone."""

import logging

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.prefix_hash import ANCHOR, chained_hashes
from megacontext_vllm.tree.tree import MegaContextTree

logger = logging.getLogger(__name__)

_CHUNK = 1024 * ANCHOR


def chain_of(tree: MegaContextTree, known: int = 0, previous: bytes = b"") -> list[bytes]:
    """Hashes of ``tree`` from anchor ``known`` on, ``previous`` being the one before (empty at the start).

    A sealed span brings its own. The chain ends early, with a warning, where tokens cannot be read, and at a span that
    was lost with its hashes.
    """
    hashes: list[bytes] = []
    at, end, size = known * ANCHOR, tree.length // ANCHOR * ANCHOR, _CHUNK
    while at < end:
        span = next(iter(tree.sealed.overlapping(at, end)), None) if tree.sealed else None
        if span is not None and span.start <= at:
            inside = span.hashes[(at - span.start) // ANCHOR :]
            hashes += inside
            if not inside:
                break
            at, previous = span.stop, inside[-1]
            continue
        stop = min(end, at + size, end if span is None else span.start)
        try:
            hashes += chained_hashes(tree.read_tokens(at, stop), previous)
        except StoreError as error:
            if stop - at > ANCHOR:
                size = ANCHOR  # page by page, for those before the damage
                continue
            logger.warning("tree %s is indexed up to token %d only: %s", tree.tree_id, at, error)
            break
        at, previous = stop, hashes[-1]
    return hashes
