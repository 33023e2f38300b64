import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.tree import fork
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.files.level_reader import LevelReader, read_count
from megacontext_vllm.tree.fork import copy_prefix, copy_rows
from megacontext_vllm.tree.tree import MegaContextTree

MODEL = bytes(range(16))
LENGTH = 40_000


def gists(level: int) -> NDArray[np.float16]:
    count = LENGTH // 32**level
    return np.arange(count * 8, dtype=np.float16).reshape(count, 8) + np.float16(level)


@pytest.fixture
def source(tmp_path: Path) -> MegaContextTree:
    tree = MegaContextTree.create(tmp_path / "s", tree_id="a" * 32, namespace="default", model_fingerprint=MODEL)
    tree.append(np.arange(LENGTH, dtype=np.uint32))
    for level in (1, 2, 3):
        write_rows(tree.gist_path(level), Header(level, RowType.FLOAT16, 8, 0, MODEL, MODEL), 0, gists(level))
    return tree


@pytest.fixture
def target(tmp_path: Path) -> MegaContextTree:
    return MegaContextTree.create(tmp_path / "t", tree_id="b" * 32, namespace="default", model_fingerprint=MODEL)


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 1023, 1024, 1025, 32_767, 32_768, LENGTH])
def test_prefix_and_gists_of_complete_nodes(source: MegaContextTree, target: MegaContextTree, length: int) -> None:
    copy_prefix(source, target, length)
    assert target.length == length
    np.testing.assert_array_equal(target.tokens(0, length), np.arange(length, dtype=np.uint32))
    for level in (1, 2, 3, 4):
        count = length // 32**level
        assert target.gist_count(level) == count
        assert target.gist_path(level).exists() == (count > 0)
        if count:
            reader = LevelReader(target.gist_path(level))
            np.testing.assert_array_equal(reader.rows(0, count), gists(level)[:count])
            assert reader.header.gist_fingerprint == MODEL
            assert target.gist_path(level).stat().st_size == 64 + count * 16
            reader.close()
    target.append(np.zeros(5, np.uint32))
    assert source.length == LENGTH


def test_gists_that_lag_behind_the_tokens(source: MegaContextTree, target: MegaContextTree) -> None:
    source.gist_path(1).unlink()
    header = Header(1, RowType.FLOAT16, 8, 0, MODEL, MODEL)
    write_rows(source.gist_path(1), header, 0, gists(1)[:3])
    copy_prefix(source, target, 1024)
    assert (target.gist_count(1), target.gist_count(2)) == (3, 1)


def test_damaged_gists_are_left_out(
    source: MegaContextTree, target: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    with source.gist_path(1).open("r+b") as file:
        file.write(b"XXXX")
    copy_prefix(source, target, 1024)
    assert (target.length, target.gist_count(1), target.gist_count(2)) == (1024, 0, 1)
    assert not target.gist_path(1).exists()
    assert "level 1" in caplog.text


def test_copy_without_help_of_the_kernel(source: MegaContextTree, tmp_path: Path) -> None:
    plain = tmp_path / "plain.ctx"
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(os, "copy_file_range", raising=False)
        patch.setattr(fork, "_CHUNK", 1000)
        copy_rows(source.gist_path(1), plain, 1001)
    copy_rows(source.gist_path(1), tmp_path / "kernel.ctx", 1001)
    assert plain.read_bytes() == (tmp_path / "kernel.ctx").read_bytes()
    assert read_count(plain) == 1001


def test_more_rows_than_there_are(source: MegaContextTree, tmp_path: Path) -> None:
    with pytest.raises(CorruptTreeError, match="were expected"):
        copy_rows(source.gist_path(3), tmp_path / "x.ctx", 2)
    with pytest.raises(StoreError, match="cannot read"):
        copy_rows(source.gist_path(4), tmp_path / "x.ctx", 1)
