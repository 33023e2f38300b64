"""Random plans, restores and appends against a model that only knows which nodes are sealed."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from curation.trees import check, compaction, folder_of, grow, new_tree, opened, plan_of, tokens_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from megacontext_vllm.tree.curation.actions import Action, CurationPlan
from megacontext_vllm.tree.curation.apply import apply
from megacontext_vllm.tree.curation.pending import finish_pending
from megacontext_vllm.tree.curation.plan import make_plan
from megacontext_vllm.tree.curation.policy import CurationPolicy
from megacontext_vllm.tree.curation.restore import restore
from megacontext_vllm.tree.nodes import num_nodes, span
from megacontext_vllm.tree.verify import verify_tree

NOWHEN = 4e9  # long after anything was used


class Curated(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.store = Path(tempfile.mkdtemp(prefix="curated"))
        self.sealed: dict[str, tuple[int, int]] = {}

    @initialize(length=st.integers(1, 40_000))
    def start(self, length: int) -> None:
        self.length = length
        self.folder = new_tree(self.store, length)

    def teardown(self) -> None:
        shutil.rmtree(self.store)

    def overlaps(self, start: int, stop: int) -> bool:
        return any(span(*node)[0] < stop and start < span(*node)[1] for node in self.sealed.values())

    @rule(more=st.integers(1, 3000))
    def append(self, more: int) -> None:
        self.length += more
        with opened(self.folder, writable=True) as tree:
            grow(tree, self.length)

    @rule(data=st.data())
    def compact_by_hand(self, data: st.DataObject) -> None:
        """Any nodes, also such as cannot be: they are refused, the others done."""
        nodes = data.draw(st.lists(st.tuples(st.just(2), st.integers(0, self.length // 1024)), max_size=4))
        if data.draw(st.booleans()):
            nodes.append((3, 0))
        nodes = sorted(set(nodes), key=lambda node: span(*node))
        actions: list[Action] = []
        for node in nodes:
            action = compaction(*node)
            if not actions or actions[-1].stop <= action.start:
                actions.append(action)
        good = [a for a in actions if a.stop <= self.length and not self.overlaps(a.start, a.stop)]
        done = apply(self.store, self.folder, plan_of(self.folder, actions))
        assert done.done == [action.action_id for action in good]
        assert set(done.failed) == {action.action_id for action in actions if action not in good}
        self.sealed |= {str(a.action_id): (a.level or 0, a.index or 0) for a in good}

    @rule(
        head=st.integers(0, 5000),
        tail=st.integers(0, 20_000),
        spans=st.lists(st.tuples(st.integers(0, 40_000), st.integers(0, 3000)), max_size=3),
        highest=st.integers(2, 3),
    )
    def compact_by_policy(self, head: int, tail: int, spans: list[tuple[int, int]], highest: int) -> None:
        protected = tuple((start, start + size) for start, size in spans)
        policy = CurationPolicy(
            protect_head_tokens=head, protect_tail_tokens=tail, protected=protected, max_level=highest
        )
        with opened(self.folder) as tree:
            plan = make_plan(tree, None, policy, NOWHEN)
        assert CurationPlan.from_json(plan.to_json()) == plan
        at = 0
        for action in plan.actions:
            assert action.start == at < action.stop
            at = action.stop
        assert at == self.length
        kept = np.zeros(self.length, bool)
        kept[:head] = True
        kept[max(self.length - tail, 0) :] = True
        for start, stop in protected:
            kept[start:stop] = True
        may = 0
        for index in range(num_nodes(self.length, 2)):
            may += 1024 * (not kept[slice(*span(2, index))].any() and not self.overlaps(*span(2, index)))
        compact = [action for action in plan.actions if action.kind == "compact"]
        assert sum(action.stop - action.start for action in compact) == may
        assert all(not kept[action.start : action.stop].any() for action in compact)
        done = apply(self.store, self.folder, plan)
        assert done.done == [action.action_id for action in compact] and not done.failed
        self.sealed |= {str(a.action_id): (a.level or 0, a.index or 0) for a in compact}

    @precondition(lambda self: self.sealed)
    @rule(data=st.data())
    def restore_one(self, data: st.DataObject) -> None:
        action_id = data.draw(st.sampled_from(sorted(self.sealed, key=lambda key: self.sealed[key])))
        restore(self.store, self.folder, action_id)
        del self.sealed[action_id]

    @rule()
    def finish(self) -> None:
        finish_pending(self.store, self.folder)

    @invariant()
    def holds(self) -> None:
        nodes = sorted(self.sealed.values(), key=lambda node: span(*node))
        check(self.folder, nodes)
        assert not verify_tree(self.folder).damage
        with opened(self.folder) as tree:
            assert tree.length == self.length
            raw = sum(stop - start for start, stop in tree.sealed.runs(0, self.length))
        assert raw == self.length - sum(span(*node)[1] - span(*node)[0] for node in nodes)
        data = np.fromfile(self.folder / "LOD0.ctx", "<u4", offset=64)
        expected = tokens_of(0, self.length)
        for node in nodes:
            expected[slice(*span(*node))] = 0
        np.testing.assert_array_equal(data, expected)
        assert folder_of(self.store) == self.folder


TestCurated = pytest.mark.slow(Curated.TestCase)
TestCurated.settings = settings(
    max_examples=12, stateful_step_count=10, deadline=None, suppress_health_check=list(HealthCheck)
)
