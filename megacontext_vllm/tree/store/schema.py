"""The index as a sqlite file: its tables, how it is opened, brought up to date, or replaced when it is damaged."""

import logging
import sqlite3
from pathlib import Path

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 2
"""Version 1, never released, had no bytes, name and pinned."""
_BUSY_TIMEOUT_S = 10.0
_NAMES = """
CREATE UNIQUE INDEX IF NOT EXISTS trees_by_name ON trees(model, namespace, name) WHERE name IS NOT NULL;
CREATE INDEX IF NOT EXISTS trees_by_use ON trees(model, namespace, last_access);
"""
# The model is part of every key: two models may share a tokenizer and hence all hashes, but never a tree.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS trees(
    model BLOB, namespace TEXT, tree_id TEXT, length INTEGER, created REAL, last_access REAL,
    bytes INTEGER NOT NULL DEFAULT 0, name TEXT, pinned INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY(model, namespace, tree_id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS anchors(
    model BLOB, namespace TEXT, hash BLOB, tree_id TEXT, length INTEGER,
    PRIMARY KEY(model, namespace, hash, tree_id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS anchors_of_tree ON anchors(model, namespace, tree_id);
{_NAMES}
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_FROM_1 = f"""
BEGIN IMMEDIATE;
ALTER TABLE trees ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE trees ADD COLUMN name TEXT;
ALTER TABLE trees ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;
{_NAMES}
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""


def connect_or_replace(path: Path) -> sqlite3.Connection:
    """Open the index; one that is damaged, or of a schema that is not known here, is moved aside and begun anew.

    Only one process at a time may be in here. Raises sqlite3.Error, OSError.
    """
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
        if version not in (0, 1, SCHEMA_VERSION):
            raise sqlite3.DatabaseError(f"schema version {version}, this release uses {SCHEMA_VERSION}")
        if version != SCHEMA_VERSION:
            connection.executescript(_SCHEMA if version == 0 else _FROM_1)
    except BaseException:
        connection.close()
        raise
    return connection
