import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from curation.trees import (
    ANYTHING,
    GISTS,
    check,
    compaction,
    fingerprints,
    folder_of,
    gists_of,
    grow,
    new_tree,
    opened,
    plan_of,
    tokens_of,
)

from megacontext_vllm.errors import CorruptTreeError, RequestError, StoreError, TreeInUseError, UnknownTreeError
from megacontext_vllm.tree.curation.actions import Action
from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.log import history
from megacontext_vllm.tree.curation.pending import finish_pending
from megacontext_vllm.tree.curation.policy import CurationPolicy
from megacontext_vllm.tree.curation.purge import purge
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.files.locks import claim
from megacontext_vllm.tree.gists import begin_refresh, finish, gist_versions, replace_gists
from megacontext_vllm.tree.meta import update_meta
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.verify import verify_tree

LENGTH = 40_000  # one node of 32 Ki tokens, seven more of 1,024, and a rest


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("template")
    new_tree(store, LENGTH)
    return store


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "store")
    return tmp_path / "store"


def test_what_is_compacted_is_sealed_and_comes_back_bit_by_bit(store: Path) -> None:
    folder = folder_of(store)
    before = fingerprints(folder)
    actions = [compaction(3, 0), compaction(2, 33), compaction(2, 34), compaction(2, 36)]
    done = apply(store, folder, plan_of(folder, actions))
    assert done.done == [action.action_id for action in actions] and not done.failed
    check(folder, [(3, 0), (2, 33), (2, 34), (2, 36)])
    with opened(folder) as tree:
        assert tree.sealed.runs(0, LENGTH) == [(32_768, 33_792), (35_840, 36_864), (37_888, LENGTH)]
        np.testing.assert_array_equal(tree.gists(3, 0, 1), gists_of(3, 0, 1))
    assert not verify_tree(folder).damage
    for action in (actions[2], actions[0], actions[3], actions[1]):
        restore(store, folder, str(action.action_id))
    check(folder, [])
    assert fingerprints(folder) == before
    assert not list((store / "archive").rglob("*.mctx"))


def test_the_holes_are_zeros_and_take_no_space(store: Path) -> None:
    folder = folder_of(store)
    subprocess.run(["sync", "-f", str(folder)], check=True)
    before = (folder / "LOD0.ctx").stat()
    done = apply(store, folder, plan_of(folder, [compaction(2, 5), compaction(2, 6), compaction(2, 8)]))
    after = (folder / "LOD0.ctx").stat()
    assert after.st_size == before.st_size and after.st_mtime_ns == before.st_mtime_ns
    # Rows start 64 bytes into the first block: 8 KiB side by side free one block of 4 KiB; 4 KiB alone free none.
    assert before.st_blocks * 512 - after.st_blocks * 512 == 4096
    data = (folder / "LOD0.ctx").read_bytes()[64:]
    assert not any(data[5 * 4096 : 7 * 4096]) and not any(data[8 * 4096 : 9 * 4096])
    np.testing.assert_array_equal(np.frombuffer(data[7 * 4096 : 8 * 4096], "<u4"), tokens_of(7168, 8192))
    rows = (folder / "LOD1.ctx").read_bytes()[64:]
    assert not any(rows[5 * 32 * 32 : 7 * 32 * 32]) and any(rows[7 * 32 * 32 : 7 * 32 * 32 + 32])
    assert done.freed == 0  # sealed.json has taken what was gained


def test_a_large_node_gives_nearly_all_its_space_back(store: Path) -> None:
    folder = folder_of(store)
    subprocess.run(["sync", "-f", str(folder)], check=True)
    before = sum((folder / f"LOD{level}.ctx").stat().st_blocks * 512 for level in (0, 1))
    done = apply(store, folder, plan_of(folder, [compaction(3, 0)]))
    freed = before - sum((folder / f"LOD{level}.ctx").stat().st_blocks * 512 for level in (0, 1))
    assert freed >= 32_768 * 4 + 1024 * 32 - 2 * 8192
    assert freed - 3 * 4096 <= done.freed <= freed  # LOD2 and sealed.json


def test_appending_goes_on_over_a_compacted_end(store: Path) -> None:
    folder = folder_of(store)
    actions = [compaction(2, 38), compaction(2, 37)]
    apply(store, folder, plan_of(folder, sorted(actions, key=lambda action: action.start)))
    with opened(folder, writable=True) as tree:
        grow(tree, 66_000)
    check(folder, [(2, 37), (2, 38)])
    for action in actions:
        restore(store, folder, str(action.action_id))
    check(folder, [])


def test_who_has_the_tree_open_keeps_it(store: Path) -> None:
    folder = folder_of(store)
    action = compaction(2, 1)
    plan = plan_of(folder, [action])
    with opened(folder) as tree:
        with pytest.raises(TreeInUseError):
            apply(store, folder, plan)
        np.testing.assert_array_equal(tree.tokens(0, LENGTH), tokens_of(0, LENGTH))
    apply(store, folder, plan)
    with opened(folder), pytest.raises(TreeInUseError):
        restore(store, folder, str(action.action_id))
    with claim(folder), pytest.raises(TreeInUseError):
        finish_pending(store, folder)


def test_a_plan_is_checked_again_when_it_is_applied(store: Path) -> None:
    folder = folder_of(store)
    first = compaction(2, 8)
    apply(store, folder, plan_of(folder, [first]))
    policy = CurationPolicy(protect_head_tokens=1025, protect_tail_tokens=3_000, protected=((5000, 5001),))
    beyond = Action("compact", 39_936, 40_960, "", 0, 2, 39, "a" * 32)
    borrowed = compaction(2, 9)
    borrowed = Action("compact", borrowed.start, borrowed.stop, "", 0, 2, 9, first.action_id)
    actions = [compaction(2, 0), compaction(2, 1), compaction(2, 4), compaction(2, 8), borrowed, compaction(2, 36)]
    done = apply(store, folder, plan_of(folder, [*actions, beyond], policy))
    whys = [done.failed[str(action.action_id)] for action in [*actions, beyond]]
    for why, part in zip(whys, ["head", "head", "protected", "sealed already", "another action", "tail", "not all"]):
        assert part in why, (why, part)
    assert done.done == []
    check(folder, [(2, 8)])
    restore(store, folder, str(first.action_id))  # its archive was not overwritten
    check(folder, [])


def test_applied_twice_is_applied_once(store: Path) -> None:
    folder = folder_of(store)
    plan = plan_of(folder, [compaction(2, 3), compaction(2, 4)])
    assert apply(store, folder, plan).done == apply(store, folder, plan).done
    check(folder, [(2, 3), (2, 4)])


@pytest.mark.parametrize(
    ("name", "row", "unhurt"),
    [("LOD0.ctx", 4 * 7_500, [2, 6]), ("LOD1.ctx", 32 * 230, [2, 6, 9]), ("LOD2.ctx", 32, [])],
)
def test_damaged_rows_are_not_archived_and_not_dropped(store: Path, name: str, row: int, unhurt: list[int]) -> None:
    folder = folder_of(store)
    with open(folder / name, "r+b") as file:  # of node 7, in LOD2 of the first 32 nodes
        file.seek(64 + row)
        file.write(b"\xff\xfe\xfd")
    before = fingerprints(folder)
    actions = {index: compaction(2, index) for index in (2, 6, 7, 9)}
    done = apply(store, folder, plan_of(folder, actions.values()))
    assert done.done == [actions[index].action_id for index in unhurt]  # behind damaged tokens the hash chain ends
    assert all("differ from their checksum" in why for why in done.failed.values())
    assert len(list((store / "archive").rglob("*.mctx*"))) == len(unhurt)
    for index in unhurt:
        restore(store, folder, str(actions[index].action_id))
    assert fingerprints(folder) == before


def test_nothing_is_compacted_behind_tokens_lost_with_their_hashes(store: Path) -> None:
    folder = folder_of(store)
    SealedSpans([SealedSpan(2, 5, "lost")]).save(folder)
    actions = [compaction(2, 4), compaction(2, 6), compaction(2, 7)]
    done = apply(store, folder, plan_of(folder, actions))
    assert done.done == [actions[0].action_id]
    assert all("lost with their hashes" in why for why in done.failed.values())


def test_without_gists_or_with_old_ones_nothing_is_compacted(store: Path) -> None:
    folder = folder_of(store)
    begin_refresh(folder, bytes(range(50, 66)))
    action = compaction(2, 4)
    done = apply(store, folder, plan_of(folder, [action]))
    assert "to be made again" in done.failed[str(action.action_id)]
    for file in folder.glob("LOD1.*"):
        file.unlink()
    done = apply(store, folder, plan_of(folder, [action]))
    assert "no gist of level 1" in done.failed[str(action.action_id)]
    check(folder, [])


def test_gists_restored_after_a_refresh_are_to_be_made_again(store: Path) -> None:
    folder = folder_of(store)
    action = compaction(2, 3)
    apply(store, folder, plan_of(folder, [action]))
    new_net = bytes(range(50, 66))
    begin_refresh(folder, new_net)
    with opened(folder) as tree:
        counts = {level: tree.gist_count(level) for level in tree.gist_levels()}
    for level, count in counts.items():
        header = replace(GISTS, level=level, gist_fingerprint=new_net)
        for start in range(0, count, 32):
            if (level, start) != (1, 96):
                stop = min(start + 32, count)
                if level == 2 and start == 0:  # all but the node's own, which cannot be made any more
                    replace_gists(folder / "LOD2.ctx", header, 0, gists_of(level, 0, 3))
                    replace_gists(folder / "LOD2.ctx", header, 4, gists_of(level, 4, stop))
                else:
                    replace_gists(folder / f"LOD{level}.ctx", header, start, gists_of(level, start, stop))
    assert finish(folder)
    restore(store, folder, str(action.action_id))
    check(folder, [])
    assert not gist_versions(folder, 1, 96, 128).any()
    assert gist_versions(folder, 1, 0, 96).all() and gist_versions(folder, 1, 128, 160).all()
    assert not finish(folder)


def test_gists_of_another_kind_are_left_to_be_made_again(store: Path) -> None:
    folder = folder_of(store)
    action = compaction(2, 3)
    apply(store, folder, plan_of(folder, [action]))
    for file in folder.glob("LOD1.*"):
        file.unlink()
    restore(store, folder, str(action.action_id))
    with opened(folder) as tree:
        np.testing.assert_array_equal(tree.read_tokens(0, LENGTH), tokens_of(0, LENGTH))
        assert tree.gist_count(1) == 0


def test_after_a_purge_it_says_so(store: Path) -> None:
    folder = folder_of(store)
    actions = [compaction(2, 3), compaction(2, 5)]
    apply(store, folder, plan_of(folder, actions))
    made = next((store / "archive").rglob("*.mctx")).stat().st_mtime
    assert purge(store, made - 100 * 86_400, older_than_days=1).actions == []  # the clock went backwards: age 0
    assert purge(store, made + 100, older_than_days=1).actions == []
    one, other = (str(action.action_id) for action in actions)
    with opened(folder):
        gone = purge(store, made + 86_500, older_than_days=1, action_id=one)
    assert gone.actions == [one] and gone.freed > 0
    with pytest.raises(RequestError, match="was purged"):
        restore(store, folder, one)
    restore(store, folder, other)
    check(folder, [(2, 3)])
    with pytest.raises(RequestError, match="restored on .* already"):
        restore(store, folder, other)
    with pytest.raises(RequestError, match="has no action"):
        restore(store, folder, "abcdef0123")
    for hostile in ("../../x", "a/b", "A" * 32, "", "..", "a" * 65, "0123456.", "a\0bcdefgh"):
        with pytest.raises(RequestError, match="no action"):
            restore(store, folder, hostile)
        with pytest.raises(RequestError, match="no action"):
            purge(store, 0, action_id=hostile)


def test_the_log_tells_before_and_after(store: Path) -> None:
    folder = folder_of(store)
    good, bad = compaction(2, 3), compaction(2, 4)
    policy = CurationPolicy(protect_head_tokens=0, protect_tail_tokens=0, protected=((4096, 4097),))
    apply(store, folder, plan_of(folder, [good, bad], policy), now=5.0)
    restore(store, folder, str(good.action_id), now=6.0)
    told = [(entry["time"], entry["kind"], entry["event"], entry["action"]) for entry in history(store, folder.name)]
    assert told == [
        (5.0, "compact", "begin", good.action_id),
        (5.0, "compact", "begin", bad.action_id),
        (5.0, "compact", "done", good.action_id),
        (5.0, "compact", "failed", bad.action_id),
        (6.0, "restore", "begin", good.action_id),
        (6.0, "restore", "done", good.action_id),
    ]
    assert history(store, "f" * 32) == []


def test_a_full_disk_leaves_the_tree_as_it_was(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(store)
    before = fingerprints(folder)
    real = os.fsync

    def full(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".mctx.tmp"):
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        apply(store, folder, plan_of(folder, [compaction(2, 3)]))
    monkeypatch.undo()
    assert fingerprints(folder) == before
    check(folder, [])
    assert history(store)[-1]["event"] == "failed"


def test_lost_sealed_json_costs_no_archive(store: Path) -> None:
    folder = folder_of(store)
    apply(store, folder, plan_of(folder, [compaction(2, 3)]))
    (folder / "sealed.json").rename(folder / "elsewhere")
    finish_pending(store, folder)
    assert len(list((store / "archive").rglob("*.mctx"))) == 1
    (folder / "elsewhere").rename(folder / "sealed.json")
    check(folder, [(2, 3)])


def test_another_trees_plan_and_no_tree(store: Path) -> None:
    folder = folder_of(store)
    plan = plan_of(folder, [compaction(2, 3)])
    other = new_tree(store, 5000, "f" * 32)
    with pytest.raises(RequestError, match="the plan is for"):
        apply(store, other, plan)
    with pytest.raises(UnknownTreeError):
        finish_pending(store, folder_of(store, "e" * 32))
    meta = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(meta.replace(folder.name, "../../../../etc"))
    with pytest.raises(CorruptTreeError):
        apply(store, folder, plan)


def test_a_pinned_tree_is_left_alone(store: Path) -> None:
    folder = folder_of(store)
    action = compaction(2, 3)
    update_meta(folder, pinned=True)
    assert "pinned" in apply(store, folder, plan_of(folder, [action], ANYTHING)).failed[str(action.action_id)]
    check(folder, [])
