import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, SealedSpanError, TreeInUseError
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.nodes import num_nodes
from megacontext_vllm.tree.repair import repair_tree
from megacontext_vllm.tree.tree import MegaContextTree
from megacontext_vllm.tree.verify import verify_tree

MODEL = bytes(range(16))
NET = b"n" * 16
TOKENS = np.random.default_rng(1).integers(0, 49_152, 5_000, dtype=np.uint32)
WIDTH = 4


def gists(level: int, count: int) -> NDArray[np.float16]:
    return (np.arange(count * WIDTH).reshape(count, WIDTH) % 997 + level).astype(np.float16)


def make(path: Path, length: int = 5_000) -> Path:
    tree = MegaContextTree.create(path, tree_id="a" * 32, namespace="default", model_fingerprint=MODEL)
    tree.append(TOKENS[:length])
    for level in (1, 2):
        header = Header(level, RowType.FLOAT16, WIDTH, 0, MODEL, NET)
        write_rows(tree.gist_path(level), header, 0, gists(level, num_nodes(length, level)))
    tree.close()
    return path


def reopen(path: Path, writable: bool = True) -> MegaContextTree:
    return MegaContextTree.open(path, model_fingerprint=MODEL, writable=writable)


def flip(file: Path, byte: int, bit: int = 3) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def test_a_sound_tree_is_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "t")
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    seen: list[tuple[int, int]] = []
    found = verify_tree(path, lambda done, total: seen.append((done, total)))
    assert (found.length, found.damage) == (5_000, ())
    assert seen[-1] == (found.pages, found.pages) == (5 + 5 + 1, 11)
    done = repair_tree(path)
    assert (done.length, done.lost, done.cut_off, done.gists_dropped) == (5_000, [], None, {})
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 4_999), st.integers(0, 31))
def test_any_flipped_token_is_found_and_only_its_run_is_lost(
    tmp_path_factory: pytest.TempPathFactory, token: int, bit: int
) -> None:
    path = make(tmp_path_factory.mktemp("x") / "t")
    flip(path / "LOD0.ctx", 64 + 4 * token + bit // 8, bit % 8)
    run = (token // 1024 * 1024, min(token // 1024 * 1024 + 1024, 5_000))
    assert verify_tree(path).tokens_damaged == [run]
    sound = reopen(path, writable=False)
    with pytest.raises(CorruptTreeError, match=f"rows {run[0]} to {run[1]}"):
        sound.read_tokens(token, token + 1)
    # The rest can be read before any repair.
    np.testing.assert_array_equal(sound.read_tokens(0, run[0]), TOKENS[: run[0]])
    np.testing.assert_array_equal(sound.read_tokens(run[1], 5_000), TOKENS[run[1] :])
    with pytest.raises(TreeInUseError):
        repair_tree(path)
    sound.close()
    done = repair_tree(path)
    assert verify_tree(path).damage == ()
    tree = reopen(path)
    np.testing.assert_array_equal(tree.read_tokens(0, run[0]), TOKENS[: run[0]])
    if run[1] == 5_000:  # the unfinished end is cut off
        assert (done.cut_off, done.lost, tree.length) == (run, [], run[0])
        assert tree.gist_count(1) == run[0] // 32
    else:
        assert (done.cut_off, done.lost, tree.length) == (None, [run], 5_000)
        np.testing.assert_array_equal(tree.read_tokens(run[1], 5_000), TOKENS[run[1] :])
        for read in (tree.tokens, tree.read_tokens):
            with pytest.raises(SealedSpanError, match="lost"):
                read(run[0], run[1])
        with pytest.raises(SealedSpanError):
            tree.read_gists(1, run[0] // 32, run[0] // 32 + 1)
        np.testing.assert_array_equal(tree.read_gists(2, 0, 4), gists(2, 4))  # its gist can still be shown
    tree.append(TOKENS[:100])
    tree.close()


def test_a_donor_brings_the_tokens_back(tmp_path: Path) -> None:
    path = make(tmp_path / "t")
    for token in (100, 3_500, 4_999):
        flip(path / "LOD0.ctx", 64 + 4 * token)
    done = repair_tree(path, donor=lambda start, stop: TOKENS[start:stop] if start != 3072 else None)
    assert (done.copied_back, done.lost) == ([(0, 1024), (4096, 5000)], [(3072, 4096)])
    tree = reopen(path)
    np.testing.assert_array_equal(tree.read_tokens(0, 3072), TOKENS[:3072])
    np.testing.assert_array_equal(tree.read_tokens(4096, 5000), TOKENS[4096:])
    tree.close()


@pytest.mark.parametrize("left", [64 + 4 * 4_500, 64 + 4 * 4_096, 64 + 7, 64])
def test_a_short_file_keeps_what_is_whole(tmp_path: Path, left: int) -> None:
    path = make(tmp_path / "t")
    os.truncate(path / "LOD0.ctx", left)
    kept = min((left - 64) // 4, 4_096) // 1024 * 1024
    with pytest.raises(CorruptTreeError):
        reopen(path)
    spans = verify_tree(path).tokens_damaged
    assert spans[0][0] == kept and spans[-1][1] == 5_000
    done = repair_tree(path)
    assert done.length == kept
    tree = reopen(path)
    assert (tree.length, tree.gist_count(1), tree.gist_count(2)) == (kept, kept // 32, kept // 1024)
    np.testing.assert_array_equal(tree.read_tokens(0, kept), TOKENS[:kept])
    tree.close()


@pytest.mark.parametrize(("level", "row", "kept"), [(1, 100, 96), (1, 5, 0), (2, 3, 0), (1, 155, 128)])
def test_damaged_gists_are_let_go(tmp_path: Path, level: int, row: int, kept: int) -> None:
    path = make(tmp_path / "t")
    flip(path / f"LOD{level}.ctx", 64 + row * 2 * WIDTH)
    assert [item.level for item in verify_tree(path).damage] == [level]
    done = repair_tree(path)
    assert done.gists_dropped == {level: kept}
    tree = reopen(path)
    assert tree.gist_count(level) == kept
    np.testing.assert_array_equal(tree.read_tokens(0, 5_000), TOKENS)
    tree.close()
    assert verify_tree(path).damage == ()


def test_opening_for_writing_lets_damaged_gists_go_by_itself(tmp_path: Path) -> None:
    path = make(tmp_path / "t")
    flip(path / "LOD2.ctx", 5)  # header
    flip(path / "LOD1.ctx", 64 + 155 * 2 * WIDTH)  # the unfinished last page, as after a power cut
    tree = reopen(path)
    assert (tree.gist_count(1), tree.gist_count(2)) == (128, 0)
    np.testing.assert_array_equal(tree.read_gists(1, 0, 128), gists(1, 128))
    tree.close()


def test_lost_checksums(tmp_path: Path) -> None:
    path = make(tmp_path / "t")
    (path / "LOD0.crc").unlink()
    with pytest.raises(CorruptTreeError, match="checksums"):
        reopen(path)
    assert verify_tree(path).tokens_damaged == [(0, 5_000)]
    before = (path / "LOD0.ctx").read_bytes()
    with pytest.raises(CorruptTreeError, match="repair --trust"):
        repair_tree(path)
    assert (path / "LOD0.ctx").read_bytes() == before  # what cannot be checked is not thrown away
    done = repair_tree(path, trust=True)
    assert (done.length, done.lost) == (5_000, [])
    tree = reopen(path)
    np.testing.assert_array_equal(tree.read_tokens(0, 5_000), TOKENS)
    tree.close()


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("bit", range(0, 16 * 8, 5))
def test_a_damaged_header_of_the_checksums_costs_nothing(tmp_path: Path, bit: int, level: int) -> None:
    path = make(tmp_path / "t")
    sums = bytearray((path / f"LOD{level}.crc").read_bytes())
    sums[bit // 8] ^= 1 << bit % 8
    (path / f"LOD{level}.crc").write_bytes(sums)
    found = verify_tree(path)
    assert [(item.level, item.tokens) for item in found.damage] == [(level, None)]
    assert repair_tree(path).length == 5_000
    assert not verify_tree(path).damage
    tree = reopen(path)
    np.testing.assert_array_equal(tree.read_tokens(0, 5_000), TOKENS)
    tree.close()


def test_checksums_of_another_version_say_nothing(tmp_path: Path) -> None:
    path = make(tmp_path / "t")
    start = struct.pack("<4sHHI", b"MCTS", 1, 0, 1024)
    sums = (path / "LOD0.crc").read_bytes()
    (path / "LOD0.crc").write_bytes(start + struct.pack("<I", zlib.crc32(start)) + bytes(len(sums) - 16))
    with pytest.raises(CorruptTreeError, match="repair --trust"):
        reopen(path)
    with pytest.raises(CorruptTreeError, match="repair --trust"):
        repair_tree(path)
    assert repair_tree(path, trust=True).length == 5_000
    assert not verify_tree(path).damage


def test_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    path = make(tmp_path / "t")
    flip(path / "LOD0.ctx", 17)
    assert verify_tree(path).damage[0].stop is None
    with pytest.raises(CorruptTreeError, match="cannot be repaired"):
        repair_tree(path)
