import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megacontext_vllm.errors import (
    CorruptTreeError,
    FingerprintMismatchError,
    StoreError,
    TreeLockedError,
    UnknownTreeError,
)
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.tree import MegaContextTree

MODEL, OTHER_MODEL = bytes(range(16)), bytes(range(1, 17))


def ids(start: int, stop: int) -> NDArray[np.uint32]:
    return np.arange(start, stop, dtype=np.uint32)


def create(path: Path) -> MegaContextTree:
    return MegaContextTree.create(path, tree_id="a" * 32, namespace="default", model_fingerprint=MODEL)


def reopen(path: Path, writable: bool = True) -> MegaContextTree:
    return MegaContextTree.open(path, model_fingerprint=MODEL, writable=writable)


def write_gists(tree: MegaContextTree, level: int, count: int) -> None:
    header = Header(level, RowType.FLOAT32, 4, 0, MODEL, bytes(16))
    write_rows(tree.gist_path(level), header, 0, np.full((count, 4), level, np.float32))


def child(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_create_append_reopen(tmp_path: Path) -> None:
    before = time.time()
    tree = create(tmp_path / "t")
    assert (tree.tree_id, tree.namespace, tree.path, tree.length) == ("a" * 32, "default", tmp_path / "t", 0)
    assert tree.append(ids(0, 40)) == 40
    assert tree.append(ids(40, 41), at=40) == 41
    assert tree.append(ids(0, 0)) == 41
    tree.close()
    tree.close()
    meta = json.loads((tmp_path / "t" / "meta.json").read_text())
    assert before <= meta.pop("created") <= time.time()
    assert meta == {
        "format_version": 1,
        "tree_id": "a" * 32,
        "namespace": "default",
        "model_fingerprint": MODEL.hex(),
    }
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == [
        "LOD0.crc",
        "LOD0.ctx",
        "meta.json",
        "use.lock",
        "writer.lock",
    ]
    again = reopen(tmp_path / "t")
    np.testing.assert_array_equal(again.tokens(0, 41), ids(0, 41))
    assert again.tokens(3, 5).dtype == np.uint32
    with pytest.raises(IndexError):
        again.tokens(0, 42)
    again.close()
    with pytest.raises(StoreError):
        create(tmp_path / "t")


def test_append_at_the_wrong_place_is_refused(tmp_path: Path) -> None:
    tree = create(tmp_path / "t")
    tree.append(ids(0, 5))
    for at in (0, 4, 6):
        with pytest.raises(StoreError, match="ends at token 5"):
            tree.append(ids(0, 1), at=at)
    assert tree.length == 5
    tree.close()


def test_reader_is_never_blocked_and_follows_the_writer(tmp_path: Path) -> None:
    writer = create(tmp_path / "t")
    reader = reopen(tmp_path / "t", writable=False)
    writer.append(ids(0, 3000))
    assert reader.length == 3000
    np.testing.assert_array_equal(reader.tokens(0, 3000), ids(0, 3000))
    writer.append(ids(3000, 3001))
    np.testing.assert_array_equal(reader.tokens(2999, 3001), ids(2999, 3001))  # without asking for the length first
    assert not reader.writable
    for forbidden in (lambda: reader.append(ids(0, 1)), reader.drop_gists, reader.delete):
        with pytest.raises(StoreError, match="open for reading"):
            forbidden()
    writer.close()
    reader.become_writer()
    assert reader.append(ids(3001, 3002)) == 3002
    reader.close()


def test_second_writer_in_this_process(tmp_path: Path) -> None:
    first = create(tmp_path / "t")
    with pytest.raises(TreeLockedError, match="another writer"):
        reopen(tmp_path / "t")
    first.close()
    reopen(tmp_path / "t").close()


def test_second_writer_in_another_process(tmp_path: Path) -> None:
    first = create(tmp_path / "t")
    first.append(ids(0, 7))
    script = f"""
from pathlib import Path
from megacontext_vllm.errors import TreeLockedError
from megacontext_vllm.tree.tree import MegaContextTree
path, model = Path({str(tmp_path / "t")!r}), {MODEL!r}
print(MegaContextTree.open(path, model_fingerprint=model, writable=False).length)
try:
    MegaContextTree.open(path, model_fingerprint=model, writable=True)
except TreeLockedError as error:
    print("locked:", error)
else:
    print("not locked")
"""
    assert child(script).stdout.startswith("7\nlocked:")
    first.close()
    assert child(script).stdout == "7\nnot locked\n"


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    tree = create(tmp_path / "t")
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    try:
        tree.close()
        reopen(tmp_path / "t").close()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_other_model_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "t").close()
    for writable in (False, True):
        with pytest.raises(FingerprintMismatchError):
            MegaContextTree.open(tmp_path / "t", model_fingerprint=OTHER_MODEL, writable=writable)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format_version": 1}', "\xff"])
def test_damaged_meta(tmp_path: Path, text: str) -> None:
    create(tmp_path / "t").close()
    (tmp_path / "t" / "meta.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptTreeError, match=r"meta\.json"):
        reopen(tmp_path / "t")


def test_newer_format_missing_tokens_and_no_tree(tmp_path: Path) -> None:
    create(tmp_path / "t").close()
    meta = json.loads((tmp_path / "t" / "meta.json").read_text())
    (tmp_path / "t" / "meta.json").write_text(json.dumps({**meta, "format_version": 2}))
    with pytest.raises(CorruptTreeError, match="format version 2"):
        reopen(tmp_path / "t")
    (tmp_path / "t" / "meta.json").write_text(json.dumps(meta))
    (tmp_path / "t" / "LOD0.ctx").unlink()
    with pytest.raises(CorruptTreeError, match="LOD0"):
        reopen(tmp_path / "t")
    (tmp_path / "t" / "meta.json").unlink()
    with pytest.raises(UnknownTreeError):
        reopen(tmp_path / "t")


def test_writer_cuts_back_and_failed_open_leaves_no_lock(tmp_path: Path) -> None:
    tree = create(tmp_path / "t")
    tree.append(ids(0, 100))
    tree.close()
    file = tmp_path / "t" / "LOD0.ctx"
    with file.open("ab") as out:
        out.write(b"unfinished")
    reopen(tmp_path / "t", writable=False).close()
    assert file.stat().st_size > 64 + 400  # reading repairs nothing
    reopen(tmp_path / "t").close()
    assert file.stat().st_size == 64 + 400
    os.truncate(file, 64 + 399)
    for writable in (True, False):
        with pytest.raises(CorruptTreeError, match=r"LOD0\.ctx"):
            reopen(tmp_path / "t", writable)
    with file.open("ab") as out:
        out.write(b"\0")
    reopen(tmp_path / "t").close()


def test_gists_count_and_drop(tmp_path: Path) -> None:
    tree = create(tmp_path / "t")
    tree.append(ids(0, 2048))
    assert tree.gist_path(1) == tmp_path / "t" / "LOD1.ctx"
    assert tree.gist_count(1) == 0
    write_gists(tree, 1, 64)
    write_gists(tree, 2, 2)
    assert (tree.gist_count(1), tree.gist_count(2), tree.gist_count(3)) == (64, 2, 0)
    tree.drop_gists()
    assert (tree.gist_count(1), tree.gist_count(2), tree.length) == (0, 0, 2048)
    tree.close()


def test_gists_of_lost_tokens_are_dropped(tmp_path: Path) -> None:
    tree = create(tmp_path / "t")
    tree.append(ids(0, 1024))
    write_gists(tree, 1, 33)  # one more than the tokens that survived
    write_gists(tree, 2, 1)
    tree.close()
    tree = reopen(tmp_path / "t")
    assert (tree.gist_count(1), tree.gist_count(2)) == (0, 1)
    tree.close()


def test_delete_while_others_look(tmp_path: Path) -> None:
    tree = create(tmp_path / "t")
    tree.append(ids(0, 100))
    reader = reopen(tmp_path / "t", writable=False)
    view = tree.tokens(0, 100)
    tree.delete()
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(view, ids(0, 100))
    np.testing.assert_array_equal(reader.tokens(0, 100), ids(0, 100))
    with pytest.raises(UnknownTreeError):
        reader.become_writer()
    reader.close()


operation = st.one_of(st.just(None), st.lists(st.integers(0, 2**32 - 1), max_size=200))


@settings(max_examples=60, deadline=None)
@given(st.lists(operation, max_size=20))
def test_behaves_like_a_list(operations: list[list[int] | None]) -> None:
    model: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        tree = create(Path(folder) / "t")
        for tokens in operations:
            if tokens is None:
                tree.close()
                tree = reopen(Path(folder) / "t")
            else:
                model += tokens
                assert tree.append(np.array(tokens, np.uint32)) == len(model)
            assert tree.length == len(model)
            assert tree.tokens(0, len(model)).tolist() == model
            middle = len(model) // 2
            assert tree.tokens(middle, len(model)).tolist() == model[middle:]
        tree.close()


APPENDER = """
import sys
from pathlib import Path
import numpy as np
from megacontext_vllm.tree.tree import MegaContextTree
tree = MegaContextTree.open(Path(sys.argv[1]), model_fingerprint=bytes(range(16)), writable=True)
print("ready", flush=True)
size = int(sys.argv[2])
while True:
    tree.append(np.arange(tree.length, tree.length + size, dtype=np.uint32))
"""


def test_killed_while_appending(tmp_path: Path) -> None:
    create(tmp_path / "t").close()
    random = np.random.default_rng(7)
    unfinished = 0
    for _ in range(30):
        size = int(random.integers(1, 5000))
        process = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(tmp_path / "t"), str(size)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = reopen(tmp_path / "t", writable=False)
        time.sleep(float(random.uniform(0, 0.02)))
        process.kill()
        process.wait()
        process.stdout.close()
        length = before.length
        before.close()
        file = tmp_path / "t" / "LOD0.ctx"
        unfinished += file.stat().st_size > 64 + 4 * length
        tree = reopen(tmp_path / "t")  # the dead writer's lock is gone
        assert tree.length == length
        np.testing.assert_array_equal(tree.tokens(0, length), ids(0, length))
        assert tree.append(ids(length, length + 1)) == length + 1
        assert file.stat().st_size == 64 + 4 * (length + 1)
        tree.close()
    print(f"30 kills, {unfinished} of them in the middle of a write, {length} tokens")
