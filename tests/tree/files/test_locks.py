import os
from pathlib import Path

import pytest
from files.levels import finished, forked, held_by_child

from megacontext_vllm.errors import StoreError, TreeInUseError, TreeLockedError, UnknownTreeError
from megacontext_vllm.tree.files.locks import claim, lock_use, lock_writer, unlock


@pytest.mark.parametrize("lock", [lock_use, lock_writer])
def test_a_tree_that_another_process_has_open_cannot_be_claimed(tmp_path: Path, lock) -> None:
    with held_by_child(lambda: lock(tmp_path)):
        with pytest.raises(TreeInUseError, match="in use"):
            with claim(tmp_path):
                pytest.fail("claimed a tree in use")
        unlock(lock_use(tmp_path))  # the failed claim left nothing locked
    with claim(tmp_path):
        pass


def test_a_claimed_tree_can_be_opened_by_nobody(tmp_path: Path) -> None:
    def attempts() -> None:
        for lock in (lock_use, lock_writer):
            with pytest.raises(TreeLockedError):
                lock(tmp_path)
        with pytest.raises(TreeInUseError):
            with claim(tmp_path):
                pass

    with claim(tmp_path):
        attempts()  # by another handle of this process
        finished(forked(attempts))
    held = [lock_use(tmp_path), lock_use(tmp_path), lock_writer(tmp_path)]
    with pytest.raises(TreeLockedError, match="another writer"):
        lock_writer(tmp_path)
    for fd in held:
        unlock(fd)
    manager = claim(tmp_path)
    with held_by_child(manager.__enter__):
        attempts()
    unlock(lock_use(tmp_path))


def test_a_claim_ends_with_its_block_even_if_that_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        with claim(tmp_path):
            raise ZeroDivisionError
    with claim(tmp_path):
        pass


def test_unlocking_counts_though_a_child_shares_the_open_file(tmp_path: Path) -> None:
    fd = lock_writer(tmp_path)
    with held_by_child(lambda: fd):  # forked while we hold it
        unlock(fd)
        with claim(tmp_path):
            pass


def test_no_such_tree(tmp_path: Path) -> None:
    with pytest.raises(UnknownTreeError):
        with claim(tmp_path / "absent"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(StoreError):
        with claim(tmp_path / "file"):
            pass
    for lock in (lock_use, lock_writer):
        with pytest.raises(FileNotFoundError):
            lock(tmp_path / "absent")
    assert os.listdir(tmp_path) == ["file"]
