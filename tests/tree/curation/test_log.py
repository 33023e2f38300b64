import os
from pathlib import Path

import pytest

from megacontext_vllm.errors import StoreError
from megacontext_vllm.tree.curation.log import LOG, history, write_log


def test_a_torn_line_is_skipped_and_nothing_is_written_over(tmp_path: Path) -> None:
    assert history(tmp_path) == []
    entries = [{"tree_id": "a", "n": 1}, {"tree_id": "b", "n": 2}, {"tree_id": "a", "n": 3}]
    write_log(tmp_path, entries)
    whole = (tmp_path / LOG).read_bytes()
    for size in range(len(whole) + 1):
        (tmp_path / LOG).write_bytes(whole[:size])
        before = history(tmp_path)
        assert before == entries[: len(before)]
        write_log(tmp_path, [{"tree_id": "c"}])
        assert history(tmp_path) == [*before, {"tree_id": "c"}]
        assert (tmp_path / LOG).read_bytes().startswith(whole[:size])
    (tmp_path / LOG).write_bytes(whole + b"[]\nnull\n\xff\xfe\n" + b"[" * 100_000 + b"\n")
    assert history(tmp_path) == entries
    assert history(tmp_path, "a") == [entries[0], entries[2]]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(StoreError):
        write_log(tmp_path, [{}])
    os.unlink(tmp_path / "log")
    write_log(tmp_path, [{}])
    assert history(tmp_path) == [{}]
