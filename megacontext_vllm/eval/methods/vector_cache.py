"""Vectors by the hash of what they were made from, in a file that several processes may use and a kill cannot break."""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError

_KEYS_AT_ONCE = 500
_PATIENCE = 60.0
"""Seconds to wait for another process that is writing."""


class VectorCache:
    """``path``: a sqlite file, made when it is first written to. ``dim``: values per vector."""

    def __init__(self, path: Path, dim: int) -> None:
        self.path = path
        self.dim = dim

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """Those of the vectors, float32 ``[dim]``, that are there."""
        found: dict[bytes, NDArray[np.float32]] = {}
        if not self.path.exists():
            return found
        with self._open() as connection:
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                part = keys[at : at + _KEYS_AT_ONCE]
                places = ",".join("?" * len(part))
                for key, blob in connection.execute(f"SELECT key, vector FROM vectors WHERE key IN ({places})", part):
                    found[key] = np.frombuffer(blob, dtype="<f4")
        assert all(vector.shape == (self.dim,) for vector in found.values()), f"{self.path} holds other vectors"
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Add vectors, all or none; what is there already stays as it is."""
        if not vectors:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with self._open() as connection, connection:
            connection.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_PATIENCE)) as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL) WITHOUT ROWID"
                )
                yield connection
        except sqlite3.Error as error:
            raise EvaluationError(f"{self.path}: {error}; it only saves time, so it may be deleted") from error
