"""A whole store against a plain in-memory model: append, fork, reopen, refresh, curate, crash, in any order."""

import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.plan import make_plan
from megacontext_vllm.tree.curation.policy import CurationPolicy
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.gists import (
    append_gists,
    begin_refresh,
    finish,
    gist_versions,
    known_versions,
    replace_gists,
    stale,
)
from megacontext_vllm.tree.nodes import depth, num_nodes
from megacontext_vllm.tree.refresh import Refresh
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.store.match import common_prefix
from megacontext_vllm.tree.store.prefix_hash import ANCHOR
from megacontext_vllm.tree.tree import MegaContextTree
from megacontext_vllm.tree.verify import verify_tree

MODEL = bytes(range(16))
WIDTH = 2
NUMBERS = st.integers(0, 99_999)
POLICY = CurationPolicy(cold_days=0, protect_head_tokens=0, protect_tail_tokens=ANCHOR)


def gist(net: bytes, level: int, start: int, stop: int) -> NDArray[np.float32]:
    """What the net makes of these nodes: a number that no other net, level or node has."""
    first = np.arange(start, stop, dtype=np.float32) + 10_000 * net[0] + 1_000_000 * level
    return np.stack([first, -first], axis=1)


class StoreMachine(RuleBasedStateMachine):
    @initialize()
    def open(self) -> None:
        self.store = Path(tempfile.mkdtemp())
        self.library = TreeLibrary(self.store, MODEL)
        self.trees: dict[str, NDArray[np.uint32]] = {}
        self.taken: dict[str, list[str]] = {}
        self.net, self.seed = b"1" * 16, 0

    def teardown(self) -> None:
        self.library.close()
        shutil.rmtree(self.store)

    def folder(self, tree_id: str) -> Path:
        return self.store / "trees" / "default" / tree_id

    def pick(self, number: int) -> str:
        # By number: ids are random, and what is drawn may not depend on them.
        return list(self.trees)[number % len(self.trees)]

    @rule(number=NUMBERS, new=st.integers(1, 4_000), cut=st.one_of(st.none(), NUMBERS), like_stored=st.booleans())
    def ask(self, number: int, new: int, cut: int | None, like_stored: bool) -> None:
        """A client sends a history: something stored up to some token, then something nobody has said."""
        self.seed += 1
        tokens = np.random.default_rng(self.seed).integers(0, 150_000, new, dtype=np.uint32)
        if self.trees and like_stored:
            stored = self.trees[self.pick(number)]
            tokens = np.concatenate([stored[: len(stored) if cut is None else cut % len(stored)], tokens])
            tokens = tokens[: len(tokens) - (number % 3 == 0) * new] if len(tokens) > new else tokens
        best = max((common_prefix(stored, tokens) for stored in self.trees.values()), default=0)
        acquired = self.library.acquire("default", tokens)
        tree_id = acquired.tree.tree_id
        before = self.trees.get(tree_id, tokens[:0])
        assert acquired.created == (tree_id not in self.trees)
        assert common_prefix(before, tokens) == min(len(before), len(tokens)), "no stored token ever changes"
        if not any(self.taken.values()):
            assert acquired.reused == (best if best >= ANCHOR else 0)
        self.trees[tree_id] = max(before, tokens, key=len)
        self.taken.setdefault(tree_id, [])
        self.library.release(acquired.tree)

    @precondition(lambda self: self.trees)
    @rule(number=NUMBERS, steps=st.integers(1, 20))
    def make_gists(self, number: int, steps: int) -> None:
        """The present net refreshes and completes a tree, as far as some steps go."""
        tree_id = self.pick(number)
        folder, tree = self.folder(tree_id), self.library.get("default", tree_id)
        length = tree.length
        begin_refresh(folder, self.net)
        refresh = Refresh(tree, "eager")
        header = [Header(level, RowType.FLOAT32, WIDTH, 0, MODEL, self.net) for level in range(8)]
        for _ in range(steps):
            nodes = refresh.next_nodes(40)
            for level, start, stop in nodes:
                replace_gists(tree.gist_path(level), header[level], start, gist(self.net, level, start, stop))
            if nodes:
                continue
            finish(folder)
            for level in range(1, depth(length) + 1):
                start, stop = tree.gist_count(level), num_nodes(length, level)
                if level > 1:
                    stop = min(stop, tree.gist_count(level - 1) // 32)
                if start < stop:
                    stop = min(stop, start + 40)
                    append_gists(tree.gist_path(level), header[level], start, gist(self.net, level, start, stop))
        self.library.release(tree)

    @rule()
    def train_a_new_net(self) -> None:
        self.net = bytes([self.net[0] + 1]) * 16

    @precondition(lambda self: self.trees)
    @rule(number=NUMBERS)
    def compact(self, number: int) -> None:
        self.make_gists(number, steps=300)  # only what has a gist can be compacted
        tree_id = self.pick(number)
        tree = self.library.get("default", tree_id)
        plan = make_plan(tree, None, POLICY, time.time() + 60)
        self.library.release(tree)
        done = apply(self.store, self.folder(tree_id), plan)
        assert not done.failed
        self.taken[tree_id] += done.done

    @precondition(lambda self: any(self.taken.values()))
    @rule(number=NUMBERS)
    def restore(self, number: int) -> None:
        taken = [(tree_id, action) for tree_id, actions in self.taken.items() for action in actions]
        tree_id, action = taken[number % len(taken)]
        restore(self.store, self.folder(tree_id), action)
        self.taken[tree_id].remove(action)

    @precondition(lambda self: self.trees)
    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        tree_id = self.pick(number)
        self.library.delete("default", tree_id)
        del self.trees[tree_id], self.taken[tree_id]

    @rule(number=NUMBERS, junk=st.integers(0, 5_000), lose_index=st.booleans())
    def crash(self, number: int, junk: int, lose_index: bool) -> None:
        """What a process killed in the middle of a write leaves behind."""
        self.library.close()
        if self.trees:
            folder = self.folder(self.pick(number))
            for file in folder.glob("LOD*.ctx"):
                with open(file, "ab") as rows:
                    rows.write(b"x" * junk)
            (folder / "LOD1.journal").write_bytes(b"MCTJ" + b"y" * (junk % 100))
            (folder / "meta.json.tmp").write_text("{")
            shutil.copytree(folder, folder.with_name(f".{folder.name}.deleted"), dirs_exist_ok=True)
        if lose_index:
            for file in self.store.glob("index.sqlite*"):
                file.unlink()
        self.library = TreeLibrary(self.store, MODEL)

    @invariant()
    def everything_is_as_it_was_written(self) -> None:
        assert {info.tree_id for info in self.library.list("default")} == set(self.trees)
        assert self.library.open_trees() == 0
        for tree_id, tokens in self.trees.items():
            folder = self.folder(tree_id)
            assert verify_tree(folder).damage == ()
            tree = MegaContextTree.open(folder, model_fingerprint=MODEL, writable=False)
            assert tree.length == len(tokens)
            assert {item.action for item in tree.sealed} == set(self.taken[tree_id])
            for start, stop in tree.sealed.runs(0, len(tokens)):
                np.testing.assert_array_equal(tree.read_tokens(start, stop), tokens[start:stop])
            nets = known_versions(folder)
            for level in tree.gist_levels():
                count = tree.gist_count(level)
                versions = gist_versions(folder, level, 0, count)
                old = stale(folder, level)
                for node in range(count):
                    if tree.sealed.hides(level, node) or not versions[node]:
                        continue
                    net = nets[versions[node] - 1]
                    found = tree.read_gists(level, node, node + 1)
                    np.testing.assert_array_equal(found, gist(net, level, node, node + 1))
                    sealed = tree.sealed.overlapping(node * 32**level, (node + 1) * 32**level)
                    assert old[node] == (net != nets[-1]) or sealed
            tree.close()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
