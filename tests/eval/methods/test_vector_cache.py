"""The cache of vectors: several writers, a kill in the middle, a damaged file."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.methods.vector_cache import VectorCache

WRITER = """
import sys
from pathlib import Path
import numpy as np
from megacontext_vllm.eval.methods.vector_cache import VectorCache
cache, limit = VectorCache(Path(sys.argv[1]), 4), int(sys.argv[2])
for i in range(limit):
    cache.put({f"{i}-{j}".encode(): np.full(4, i, np.float32) for j in range(50)})
    print(i, flush=True)
"""


def writer(path: Path, limit: int) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(limit)], stdout=subprocess.PIPE, text=True)


def test_what_is_put_is_got(tmp_path: Path) -> None:
    cache = VectorCache(tmp_path / "new" / "v.sqlite", 3)
    assert cache.get([b"a"]) == {}
    cache.put({})
    assert not cache.path.exists(), "reading makes no file"
    vectors = {bytes([i]) * 16: np.array([i, -i, 0.1 * i], np.float32) for i in range(120)}
    cache.put(vectors)
    cache.put({b"\x01" * 16: np.zeros(3, np.float32)})
    got = VectorCache(cache.path, 3).get([*vectors, b"unknown", *vectors] * 5)
    assert got.keys() == vectors.keys()
    assert all(np.array_equal(got[key], vectors[key]) and got[key].dtype == np.float32 for key in vectors)


def test_two_processes_and_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    kept, killed = writer(path, 40), writer(path, 1_000_000)
    assert killed.stdout is not None
    for _ in range(10):
        killed.stdout.readline()
    time.sleep(0.003)
    killed.send_signal(signal.SIGKILL)
    said = [*range(10), *(int(line) for line in killed.stdout.read().split())]
    assert kept.wait(30) == 0
    killed.wait(30)
    done = max(39, said[-1])
    got = VectorCache(path, 4).get([f"{i}-{j}".encode() for i in range(done + 2) for j in range(50)])
    assert len(got) % 50 == 0, "all or none"
    assert len(got) >= 50 * (done + 1), "what was acknowledged is there"
    assert all((vector == int(key.split(b"-")[0])).all() for key, vector in got.items())


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "v.sqlite"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(EvaluationError, match="v.sqlite.*may be deleted"):
        VectorCache(path, 4).get([b"x"])
