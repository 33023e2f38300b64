"""Index of the store: which trees exist, what they are called, and which begin with a given run of tokens.

It is derived from the trees and only ever a hint: a stale row costs a look, a missing one a chance to reuse. So a
damaged index is moved aside and rebuilt (``recovery.py``), and matches are always verified against the tokens.
"""

import fcntl
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.prefix_hash import ANCHOR
from megacontext_vllm.tree.store.schema import connect_or_replace

_MANY = 128
"""Trees with one anchor in common among which the last used are looked for one by one."""
_RECENT = 512
"""Where more have it: how many of the last used trees are asked whether they do."""


@dataclass(frozen=True)
class TreeInfo:
    """One line of a listing; times are Unix seconds. ``bytes``: what the tree takes on the disk."""

    tree_id: str
    length: int
    created: float
    last_access: float
    bytes: int = 0
    name: str | None = None
    pinned: bool = False


@dataclass(frozen=True)
class StoreRow:
    """A tree as retention sees it, of whatever model."""

    model: bytes
    namespace: str
    tree_id: str
    length: int
    bytes: int
    last_access: float


class TreeIndex:
    """The index as one model sees it. Any thread may call it; every method raises StoreError if sqlite fails."""

    def __init__(self, path: Path, model_fingerprint: bytes) -> None:
        self.model = model_fingerprint
        self._lock = threading.Lock()
        try:
            # sqlite's busy timeout does not cover the switch to WAL, nor moving a damaged index: one process at a time.
            with path.with_name(path.name + ".lock").open("w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                self._connection = connect_or_replace(path)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"cannot open the index {path}: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._connection:
                    yield self._connection
            except sqlite3.Error as error:
                raise StoreError(
                    f"the index of the store failed: {error}. If this persists, stop all servers "
                    "that use the store and delete index.sqlite*: it is rebuilt from the trees"
                ) from error

    def record(
        self,
        namespace: str,
        tree_id: str,
        length: int,
        created: float,
        hashes: Sequence[bytes] = (),
        *,
        first: int = 0,
        size: int | None = None,
        used: float | None = None,
    ) -> None:
        """Add the tree or update its length, size on the disk and last use, which never goes back.

        ``hashes``: its hash chain from anchor ``first`` on. ``size``: bytes, None to keep what is known. ``used``:
        Unix seconds, now if not given.
        """
        used = time.time() if used is None else used
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO trees(model, namespace, tree_id, length, created, last_access, bytes) "
                "VALUES(?1, ?2, ?3, ?4, ?5, ?6, ifnull(?7, 0)) ON CONFLICT(model, namespace, tree_id) DO UPDATE SET "
                "length = ?4, last_access = max(last_access, ?6), bytes = ifnull(?7, bytes)",
                (self.model, namespace, tree_id, length, created, used, size),
            )
            known = self._deepest(sql, namespace, hashes, tree_id)  # nearly all, where a history is asked about again
            anchors = [
                (self.model, namespace, value, tree_id, (first + k + 1) * ANCHOR)
                for k, value in enumerate(hashes[known:], start=known)
            ]
            sql.executemany("INSERT OR IGNORE INTO anchors VALUES(?, ?, ?, ?, ?)", anchors)

    def label(
        self, namespace: str, tree_id: str, name: str | None, pinned: bool, model: bytes | None = None
    ) -> bool:
        """Note name and pin of a known tree; False, and nothing noted, if another tree has the name.

        ``model``: not this index's own.
        """
        with self._transaction() as sql:
            try:
                sql.execute(
                    "UPDATE trees SET name = ?, pinned = ? WHERE model = ? AND namespace = ? AND tree_id = ?",
                    (name, pinned, self.model if model is None else model, namespace, tree_id),
                )
            except sqlite3.IntegrityError:
                return False
        return True

    def named(self, namespace: str, name: str) -> str | None:
        """Id of the tree of that name."""
        with self._transaction() as sql:
            row = sql.execute(
                "SELECT tree_id FROM trees WHERE model = ? AND namespace = ? AND name = ?",
                (self.model, namespace, name),
            ).fetchone()
        return None if row is None else str(row[0])

    def resize(self, namespace: str, tree_id: str, size: int) -> None:
        """Note what a known tree takes on the disk; this is no use of it."""
        with self._transaction() as sql:
            sql.execute(
                "UPDATE trees SET bytes = ? WHERE model = ? AND namespace = ? AND tree_id = ?",
                (size, self.model, namespace, tree_id),
            )

    def remove(self, namespace: str, tree_id: str, model: bytes | None = None) -> None:
        """Forget a tree and its anchors; nothing happens if it is unknown. ``model``: not this index's own."""
        key = (self.model if model is None else model, namespace, tree_id)
        with self._transaction() as sql:
            sql.execute("DELETE FROM trees WHERE model = ? AND namespace = ? AND tree_id = ?", key)
            sql.execute("DELETE FROM anchors WHERE model = ? AND namespace = ? AND tree_id = ?", key)

    def deepest(self, namespace: str, hashes: Sequence[bytes]) -> int:
        """How many leading hashes of the chain some tree has; 0 if none."""
        with self._transaction() as sql:
            return self._deepest(sql, namespace, hashes)

    def _deepest(
        self, sql: sqlite3.Connection, namespace: str, hashes: Sequence[bytes], tree_id: str | None = None
    ) -> int:
        """How many leading hashes of a chain are in the index, of any tree or of one.

        Binary search: a tree that has anchor k has all before it, so presence is monotone along the chain.
        """
        which = "model = ? AND namespace = ? AND hash = ?" + (" AND tree_id = ?" if tree_id else "")
        owner = [tree_id] if tree_id else []
        found, beyond = 0, len(hashes) + 1
        while beyond - found > 1:
            middle = (found + beyond) // 2
            key = [self.model, namespace, hashes[middle - 1], *owner]
            if sql.execute(f"SELECT 1 FROM anchors WHERE {which} LIMIT 1", key).fetchone():
                found = middle
            else:
                beyond = middle
        return found

    def with_anchor(self, namespace: str, value: bytes, limit: int) -> list[str]:
        """Ids of at most ``limit`` trees that have this anchor, the last used first.

        Thousands may have it (a system prompt); then those are preferred that are among the last used of the whole
        namespace, and an old one may be left out, so that this costs about the same however many there are.
        """
        having = "FROM anchors WHERE model = ?1 AND namespace = ?2 AND hash = ?3"
        with self._transaction() as sql:
            rows = sql.execute(
                f"SELECT tree_id, last_access FROM (SELECT model, namespace, tree_id {having} LIMIT ?4) "
                "LEFT JOIN trees USING(model, namespace, tree_id) ORDER BY last_access DESC",
                (self.model, namespace, value, _MANY),
            ).fetchall()
            recent: list[tuple[str, float]] = []
            if len(rows) == _MANY:
                recent = sql.execute(
                    "SELECT tree_id, last_access FROM (SELECT tree_id, last_access FROM trees WHERE model = ?1 "
                    "AND namespace = ?2 ORDER BY last_access DESC LIMIT ?4) AS recent WHERE EXISTS "
                    f"(SELECT 1 {having} AND anchors.tree_id = recent.tree_id) LIMIT ?5",
                    (self.model, namespace, value, _RECENT, limit),
                ).fetchall()
        # A tree that has anchors but no row of its own is a leftover of the index: it comes last.
        known: dict[str, float | None] = dict([*rows, *recent])
        return sorted(known, key=lambda tree_id: known[tree_id] or 0.0, reverse=True)[:limit]

    def trees(self, namespace: str) -> list[TreeInfo]:
        """All trees of a namespace, the last used first."""
        with self._transaction() as sql:
            rows = sql.execute(
                "SELECT tree_id, length, created, last_access, bytes, name, pinned FROM trees "
                "WHERE model = ? AND namespace = ? ORDER BY last_access DESC",
                (self.model, namespace),
            ).fetchall()
        return [TreeInfo(row[0], row[1], row[2], row[3], row[4], row[5], bool(row[6])) for row in rows]

    def totals(self) -> dict[str, tuple[int, int, int]]:
        """Trees, tokens and bytes of each namespace of this model."""
        with self._transaction() as sql:
            rows = sql.execute(
                "SELECT namespace, count(*), sum(length), sum(bytes) FROM trees WHERE model = ? GROUP BY namespace",
                (self.model,),
            ).fetchall()
        return {row[0]: (row[1], row[2], row[3]) for row in rows}

    def store_bytes(self) -> int:
        """What all trees of all models take on the disk."""
        with self._transaction() as sql:
            return int(sql.execute("SELECT ifnull(sum(bytes), 0) FROM trees").fetchone()[0])

    def unpinned(self, used_before: float | None = None) -> list[StoreRow]:
        """All trees of all models that are not pinned; ``used_before``: Unix seconds."""
        with self._transaction() as sql:
            rows = sql.execute(
                "SELECT model, namespace, tree_id, length, bytes, last_access FROM trees "
                "WHERE NOT pinned AND last_access < ifnull(?, 9e99)",
                (used_before,),
            ).fetchall()
        return [StoreRow(*row) for row in rows]

    def sizes(self) -> dict[tuple[str, str], int]:
        """Bytes on the disk, 0 if not known, by ``(namespace, tree id)``, of every tree of this model."""
        with self._transaction() as sql:
            rows = sql.execute("SELECT namespace, tree_id, bytes FROM trees WHERE model = ?", (self.model,)).fetchall()
        return {(row[0], row[1]): row[2] for row in rows}

    def keys(self) -> set[tuple[str, str]]:
        """``(namespace, tree id)`` of every tree of this model."""
        return set(self.sizes())

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def read_last_accesses(path: Path) -> dict[tuple[str, str], float]:
    """``(namespace, tree id)`` to Unix seconds of the last use, for every model; empty without an index.

    For looking at a store from outside: it leaves no file behind and mends nothing. Raises StoreError.
    """
    if not path.exists():
        return {}
    try:
        # Without a write-ahead log nobody has it open. Any other way than "immutable" would then leave files behind, of
        # this user's, that the server's user may not open.
        how = "mode=ro" if path.with_name(path.name + "-wal").exists() else "immutable=1"
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?{how}", uri=True, timeout=2)) as connection:
            rows = connection.execute("SELECT namespace, tree_id, last_access FROM trees").fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"{path} cannot be read ({error})") from error
    return {(namespace, tree_id): last_access for namespace, tree_id, last_access in rows}
