"""A store on a file system that nobody can write: reading goes on, writing is refused with what to do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from histories import BASE, put

from megacontext_vllm.tree.store.library import TreeLibrary

IN_THERE = """
import sys
from pathlib import Path
import numpy as np
from megacontext_vllm import cli
from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.tree import MegaContextTree
store, tree_id = Path(sys.argv[1]), sys.argv[2]
folder = store / "trees" / "default" / tree_id
model = bytes(range(16))
base = np.random.default_rng(0).integers(0, 150_000, 10_000, dtype=np.uint32)
tree = MegaContextTree.open(folder, model_fingerprint=model, writable=False)
assert np.array_equal(tree.read_tokens(0, 5000), base[:5000])
tree.close()
for refused in (
    lambda: MegaContextTree.open(folder, model_fingerprint=model, writable=True),
    lambda: TreeLibrary(store, model),
):
    try:
        refused()
    except StoreError as error:
        assert "Read-only" in str(error) or "readonly" in str(error), error
    else:
        raise SystemExit("was not refused")
assert cli.main(["tree", "ls", "--store", str(store)]) == 0
assert cli.main(["tree", "verify", "--store", str(store)]) == 0
assert cli.main(["tree", "repair", tree_id, "--store", str(store)]) == 2
assert cli.main(["tree", "rm", tree_id, "--yes", "--store", str(store)]) == 2
"""


def test_a_read_only_store(library: TreeLibrary, tmp_path: Path) -> None:
    tree_id = put(library, BASE[:5000])
    library.close()
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, to mount a file system read-only")
    mounts = f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,ro {tmp_path}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mounts], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    command = f"{mounts} && exec {sys.executable} -c '{IN_THERE}' {tmp_path} {tree_id}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert tree_id in done.stdout and "0 damaged" in done.stdout
