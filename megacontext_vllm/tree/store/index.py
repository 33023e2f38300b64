"""Index of the store: which trees exist, and which of them begin with a given run of tokens.

It is derived from the trees and only ever a hint: a stale row costs a look, a missing one a chance to reuse. So a
damaged index is moved aside and rebuilt (``recovery.py``), and matches are always verified against the tokens.
"""

import fcntl
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.prefix_hash import ANCHOR

logger = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
_BUSY_TIMEOUT_S = 10.0
# The model is part of every key: two models may share a tokenizer and hence all hashes, but never a tree.
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS trees(
    model BLOB, namespace TEXT, tree_id TEXT, length INTEGER, created REAL, last_access REAL,
    PRIMARY KEY(model, namespace, tree_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS anchors(
    model BLOB, namespace TEXT, hash BLOB, tree_id TEXT, length INTEGER,
    PRIMARY KEY(model, namespace, hash, tree_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS anchors_of_tree ON anchors(model, namespace, tree_id);
PRAGMA user_version = {_SCHEMA_VERSION};
"""


@dataclass(frozen=True)
class TreeInfo:
    """One line of a listing; times are Unix seconds."""

    tree_id: str
    length: int
    created: float
    last_access: float


class TreeIndex:
    """The index as one model sees it. Any thread may call it; every method raises StoreError if sqlite fails."""

    def __init__(self, path: Path, model_fingerprint: bytes) -> None:
        self._model = model_fingerprint
        self._lock = threading.Lock()
        try:
            # sqlite's busy timeout does not cover the switch to WAL, nor moving a damaged index: one process at a time.
            with path.with_name(path.name + ".lock").open("w") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                self._connection = _connect_or_replace(path)
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

    def record(self, namespace: str, tree_id: str, length: int, created: float, hashes: Sequence[bytes] = ()) -> None:
        """Add the tree or update its length and last access; ``hashes`` is its hash chain from the first token."""
        anchors = [(self._model, namespace, value, tree_id, (k + 1) * ANCHOR) for k, value in enumerate(hashes)]
        now = time.time()
        with self._transaction() as sql:
            sql.execute(
                "INSERT INTO trees VALUES(?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET length = ?, last_access = ?",
                (self._model, namespace, tree_id, length, created, now, length, now),
            )
            sql.executemany("INSERT OR IGNORE INTO anchors VALUES(?, ?, ?, ?, ?)", anchors)

    def remove(self, namespace: str, tree_id: str) -> None:
        """Forget a tree and its anchors; nothing happens if it is unknown."""
        key = (self._model, namespace, tree_id)
        with self._transaction() as sql:
            sql.execute("DELETE FROM trees WHERE model = ? AND namespace = ? AND tree_id = ?", key)
            sql.execute("DELETE FROM anchors WHERE model = ? AND namespace = ? AND tree_id = ?", key)

    def deepest(self, namespace: str, hashes: Sequence[bytes]) -> int:
        """How many leading hashes of the chain some tree has; 0 if none.

        Binary search: a tree that has anchor k has all before it, so presence is monotone along the chain.
        """
        found, beyond = 0, len(hashes) + 1
        with self._transaction() as sql:
            while beyond - found > 1:
                middle = (found + beyond) // 2
                if sql.execute(
                    "SELECT 1 FROM anchors WHERE model = ? AND namespace = ? AND hash = ? LIMIT 1",
                    (self._model, namespace, hashes[middle - 1]),
                ).fetchone():
                    found = middle
                else:
                    beyond = middle
        return found

    def with_anchor(self, namespace: str, value: bytes, limit: int) -> list[str]:
        """Ids of at most ``limit`` trees that have this anchor, the last used first."""
        with self._transaction() as sql:
            rows = sql.execute(
                "SELECT tree_id FROM anchors LEFT JOIN trees USING(model, namespace, tree_id) "
                "WHERE model = ? AND namespace = ? AND hash = ? ORDER BY last_access DESC LIMIT ?",
                (self._model, namespace, value, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def trees(self, namespace: str) -> list[TreeInfo]:
        """All trees of a namespace, the last used first."""
        with self._transaction() as sql:
            rows = sql.execute(
                "SELECT tree_id, length, created, last_access FROM trees "
                "WHERE model = ? AND namespace = ? ORDER BY last_access DESC",
                (self._model, namespace),
            ).fetchall()
        return [TreeInfo(*row) for row in rows]

    def keys(self) -> set[tuple[str, str]]:
        """``(namespace, tree id)`` of every tree of this model."""
        with self._transaction() as sql:
            rows = sql.execute("SELECT namespace, tree_id FROM trees WHERE model = ?", (self._model,)).fetchall()
        return {(row[0], row[1]) for row in rows}

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


def _connect_or_replace(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.OperationalError:  # no rights, disk full: the index itself may be sound
        raise
    except sqlite3.DatabaseError as error:
        logger.warning("the index %s is unreadable (%s); it is moved aside and rebuilt", path, error)
        for suffix in ("", "-wal", "-shm"):
            damaged = path.with_name(path.name + suffix)
            if damaged.exists():
                damaged.replace(path.with_name(f"{path.name}.damaged{suffix}"))
        return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")  # readers and the one writer do not block each other
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"schema version {version}, this release uses {_SCHEMA_VERSION}")
        if version == 0:
            connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
