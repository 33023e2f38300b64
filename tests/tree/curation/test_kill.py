"""Curation is killed -9 at every one of its steps, and at random moments: nothing is ever lost."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from curation.trees import check, compaction, fingerprints, folder_of, new_tree, plan_of, sealed_nodes
from files.levels import forked

from megacontext_vllm.tree.curation import pending
from megacontext_vllm.tree.curation.actions import Action, CurationPlan
from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.log import history
from megacontext_vllm.tree.curation.pending import finish_pending
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.sealed import SealedSpans

LENGTH = 8_200
ACTIONS = [compaction(2, 1), compaction(2, 2), compaction(2, 5)]
IDS = [str(action.action_id) for action in ACTIONS]


def die_at_step(number: int) -> None:
    """In a child: be killed just before the ``number``-th (from 0) step that changes a file, or forces one out."""
    left = number

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return real(*args, **kwargs)

        return step

    for name in ("pwrite", "write", "fsync", "replace", "rename", "unlink", "ftruncate", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))
    pending.punch = counted(pending.punch)


def kill_everywhere(prepared: Path, work: Path, run: Callable[[Path], None], look: Callable[[Path], None]) -> int:
    """Kill ``run`` at each step until it gets through; ``look`` at what each left. Returns the number of kills."""
    for number in range(1000):
        store = work / str(number)
        shutil.copytree(prepared, store)

        def child(store: Path = store, number: int = number) -> None:
            die_at_step(number)
            run(store)

        status = os.waitpid(forked(child), 0)[1]
        look(store)
        shutil.rmtree(store)
        if not os.WIFSIGNALED(status):
            assert status == 0
            return number
    raise AssertionError("it never gets through")


def kill_at_random(prepared: Path, work: Path, run: Callable[[Path], None], look: Callable[[Path], None]) -> None:
    """The same at 30 moments."""
    chance = random.Random(0)
    store = work / "timed"
    shutil.copytree(prepared, store)
    start = time.monotonic()
    run(store)
    length = time.monotonic() - start
    shutil.rmtree(store)
    for _ in range(30):
        shutil.copytree(prepared, store)
        child = forked(lambda: run(store))
        time.sleep(chance.random() * length * 1.2)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        look(store)
        shutil.rmtree(store)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("whole")
    new_tree(store, LENGTH)
    return store


@pytest.fixture(scope="module")
def compacted(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("compacted") / "store"
    shutil.copytree(whole, store)
    assert apply(store, folder_of(store), the_plan(store)).done == IDS
    return store


def the_plan(store: Path) -> CurationPlan:
    return plan_of(folder_of(store), ACTIONS)


def looker(original: dict[str, str]) -> Callable[[Path], None]:
    def look(store: Path) -> None:
        """Every token is readable and right, or sealed with an archive that brings it back bit by bit."""
        folder = folder_of(store)
        check(folder)  # also before anything is finished
        finish_pending(store, folder)
        check(folder)
        history(store)
        sealed = SealedSpans.of(folder)
        archives = {file.stem for file in (store / "archive").rglob("*") if file.is_file()}
        assert archives == {item.action for item in sealed}
        data = (folder / "LOD0.ctx").read_bytes()[64:]
        assert not any(any(data[item.start * 4 : item.stop * 4]) for item in sealed)
        for item in sealed:
            restore(store, folder, str(item.action))
        check(folder, [])
        assert fingerprints(folder) == original
        again = [Action("compact", a.start, a.stop, "", 0, a.level, a.index, a.action_id) for a in ACTIONS]
        assert apply(store, folder, plan_of(folder, again)).done == IDS
        check(folder, [(2, 1), (2, 2), (2, 5)])

    return look


@pytest.mark.slow
def test_killed_while_it_compacts(whole: Path, tmp_path: Path) -> None:
    def run(store: Path) -> None:
        apply(store, folder_of(store), the_plan(store))

    look = looker(fingerprints(folder_of(whole)))
    assert kill_everywhere(whole, tmp_path, run, look) >= 25
    kill_at_random(whole, tmp_path, run, look)


@pytest.mark.slow
def test_killed_while_it_restores(whole: Path, compacted: Path, tmp_path: Path) -> None:
    def run(store: Path) -> None:
        for action_id in IDS:
            restore(store, folder_of(store), action_id)

    look = looker(fingerprints(folder_of(whole)))
    assert kill_everywhere(compacted, tmp_path, run, look) >= 25
    kill_at_random(compacted, tmp_path, run, look)


def test_killed_while_it_moves_a_tree_away_and_back(whole: Path, tmp_path: Path) -> None:
    action = Action("archive", 0, LENGTH, "", 0, action_id="a" * 32)
    original = fingerprints(folder_of(whole))

    def there_and_back(store: Path) -> None:
        folder = folder_of(store)
        assert apply(store, folder, plan_of(folder, [action])).done
        restore(store, folder, "a" * 32)

    def look(store: Path) -> None:
        folder = folder_of(store)
        if not folder.exists():
            restore(store, folder, "a" * 32)
        finish_pending(store, folder)
        check(folder, [])
        assert fingerprints(folder) == original
        assert not [file for file in (store / "archive").rglob("*") if file.is_file()]
        there_and_back(store)
        check(folder, [])

    assert kill_everywhere(whole, tmp_path, there_and_back, look) >= 10


def test_the_child_of_the_kill_test_does_something(compacted: Path) -> None:
    assert sealed_nodes(folder_of(compacted)) == [(2, 1), (2, 2), (2, 5)]
    check(folder_of(compacted))
