import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from curation.trees import ANYTHING, DAY, compaction, new_tree, opened, plan_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megacontext_vllm.errors import ConfigError, RequestError
from megacontext_vllm.tree.curation.actions import CurationPlan
from megacontext_vllm.tree.curation.plan import make_plan
from megacontext_vllm.tree.curation.policy import CurationPolicy
from megacontext_vllm.tree.gists import begin_refresh
from megacontext_vllm.tree.meta import update_meta
from megacontext_vllm.tree.sealed import SealedSpan, SealedSpans
from megacontext_vllm.tree.telemetry import NodeTelemetry

LENGTH = 80_000  # 78 nodes of level 2 and a rest, 2 of level 3
NOW = 2_000_000_000.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return new_tree(tmp_path_factory.mktemp("plans"), LENGTH)


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    return new_tree(tmp_path, LENGTH)


def at(folder: Path, days_ago: float) -> NodeTelemetry:
    return NodeTelemetry(folder, clock=lambda: NOW - days_ago * DAY)


def planned(folder: Path, policy: CurationPolicy, now: float = NOW, telemetry: bool = True) -> CurationPlan:
    with opened(folder) as tree:
        return make_plan(tree, NodeTelemetry(folder) if telemetry else None, policy, now)


def compacted(plan: CurationPlan) -> list[tuple[int | None, int | None]]:
    return [(action.level, action.index) for action in plan.actions if action.kind == "compact"]


def reason_at(plan: CurationPlan, token: int) -> str:
    return next(action.reason for action in plan.actions if action.start <= token < action.stop)


def test_the_largest_cold_nodes_go_and_the_rest_says_why_not(folder: Path) -> None:
    policy = CurationPolicy(protected=((70_000, 70_001),), protect_tail_tokens=2_000)
    plan = planned(folder, policy)
    assert compacted(plan) == [
        *((2, index) for index in range(4, 32)),
        (3, 1),
        *((2, index) for index in range(64, 76) if index != 68),
    ]
    assert [a.start for a in plan.actions[1:]] == [a.stop for a in plan.actions[:-1]]
    assert reason_at(plan, 0) == "among the first tokens" and reason_at(plan, 70_000) == "protected"
    assert reason_at(plan, 77_999) == "among the newest tokens"
    large = next(action for action in plan.actions if action.level == 3)
    assert large.bytes == 32_768 * 4 + 1024 * 32 + 32 * 32  # LOD0, LOD1, LOD2
    assert compacted(planned(folder, ANYTHING))[0] == (3, 0)
    assert reason_at(planned(folder, ANYTHING), LENGTH - 1) == "not a complete node yet"


def test_the_age_is_that_of_what_was_used_below_the_gist(own_folder: Path) -> None:
    policy = CurationPolicy(protect_head_tokens=0, protect_tail_tokens=0, cold_days=30, max_level=2)
    with at(own_folder, 100) as old:
        old.note_created(1, 0, LENGTH // 32)
    with at(own_folder, 29) as late:
        late.note_access(1, [5 * 32 + 7])  # a child of node 5
        late.note_access(2, [9])  # the gist of node 9 itself
    with at(own_folder, 31) as early:
        early.note_access(1, [7 * 32])
    nodes = [index for _, index in compacted(planned(own_folder, policy))]
    assert nodes == [index for index in range(78) if index != 5]
    assert reason_at(planned(own_folder, policy), 5 * 1024) == "used lately"
    assert 5 in [index for _, index in compacted(planned(own_folder, policy, NOW + 2 * DAY))]
    # As one with its siblings, also gists of level 2 go: that of node 9 was used.
    larger = planned(own_folder, ANYTHING)
    assert (3, 0) not in compacted(larger) and (3, 1) in compacted(larger)


def test_a_clock_that_goes_backwards_makes_nothing_old(own_folder: Path) -> None:
    with at(own_folder, 0) as telemetry:
        telemetry.note_access(1, range(LENGTH // 32))
    assert compacted(planned(own_folder, ANYTHING, NOW - 1000 * DAY)) == []
    assert compacted(planned(own_folder, ANYTHING, 0.0, telemetry=False)) == []
    assert planned(own_folder, CurationPolicy(archive_days=1), 0.0).actions[0].kind == "keep"


def test_without_telemetry_a_node_is_as_old_as_the_last_growth(folder: Path) -> None:
    grown = (folder / "LOD0.ctx").stat().st_mtime
    assert compacted(planned(folder, ANYTHING, grown + 29 * DAY, telemetry=False)) == []
    assert compacted(planned(folder, ANYTHING, grown + 29 * DAY)) == []  # it says nothing of any node
    assert compacted(planned(folder, ANYTHING, grown + 31 * DAY, telemetry=False))[:2] == [(3, 0), (3, 1)]


def test_what_is_used_often_or_is_sensitive_stays(own_folder: Path) -> None:
    with at(own_folder, 1000) as telemetry:
        telemetry.note_created(1, 0, LENGTH // 32)
        telemetry.note_access(1, [40] * 5)
        telemetry.note_sensitivity(1, [80, 120], [0.5, 0.1])
    policy = CurationPolicy(
        protect_head_tokens=0, protect_tail_tokens=0, max_level=2, max_access_count=4, protect_sensitivity=0.5
    )
    assert {1, 2} == set(range(78)) - {index for _, index in compacted(planned(own_folder, policy))}
    assert reason_at(planned(own_folder, policy), 1024) == "used often"
    assert "sensitive" in reason_at(planned(own_folder, policy), 2048)


def test_only_whole_current_gists_stand_for_what_goes(own_folder: Path) -> None:
    with open(own_folder / "LOD2.ctx", "r+b") as file:
        file.seek(64 + 32 * 40)
        file.write(b"\xff\xff\xff")
    nodes = [index for _, index in compacted(planned(own_folder, CurationPolicy(0, 0, 0, (), 2, 2), NOW))]
    assert nodes == [*range(32), *range(64, 78)]  # the checksum is of the page of siblings
    begin_refresh(own_folder, bytes(range(70, 86)))
    assert compacted(planned(own_folder, ANYTHING)) == []
    for file_name in ("LOD1.ctx", "LOD1.crc"):
        (own_folder / file_name).unlink()
    assert "gist" in reason_at(planned(own_folder, ANYTHING), 0)


def test_sealed_and_lost_spans(own_folder: Path) -> None:
    lost = SealedSpan(2, 40, "lost")
    SealedSpans([SealedSpan(2, 3, "compacted", (bytes(16),), "a" * 32), lost]).save(own_folder)
    plan = planned(own_folder, CurationPolicy(0, 0, 0, (), 2, 2))
    assert [index for _, index in compacted(plan)] == [index for index in range(40) if index != 3]
    assert reason_at(plan, 3 * 1024) == reason_at(plan, 40 * 1024) == "sealed already"
    assert "lost" in reason_at(plan, 41 * 1024)


def test_whole_trees(own_folder: Path) -> None:
    policy = CurationPolicy(archive_days=50, delete_days=200)
    grown = (own_folder / "LOD0.ctx").stat().st_mtime
    for days, kind in ((49, "compact"), (51, "archive"), (201, "delete")):
        plan = planned(own_folder, policy, grown + days * DAY)
        assert kind in {action.kind for action in plan.actions}, days
        assert CurationPlan.from_json(plan.to_json()) == plan
    with opened(own_folder) as tree:
        plan = make_plan(tree, None, policy, grown + 201 * DAY, last_use=grown + 180 * DAY)
    assert {action.kind for action in plan.actions} == {"keep", "compact"}
    with NodeTelemetry(own_folder, clock=lambda: grown + 180 * DAY) as telemetry:
        telemetry.note_access(2, [3])
    assert planned(own_folder, policy, grown + 201 * DAY).actions[0].kind == "keep"
    update_meta(own_folder, pinned=True)
    plan = planned(own_folder, policy, grown + 2000 * DAY)
    assert [(action.kind, action.reason) for action in plan.actions] == [("keep", "pinned")]


def test_a_tree_without_a_token(tmp_path: Path) -> None:
    plan = planned(new_tree(tmp_path, 0), ANYTHING)
    assert plan.actions == () and CurationPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"cold_days": -1.0},
        {"cold_days": None},
        {"cold_days": math.nan},
        {"cold_days": 10**400},
        {"archive_days": "1"},
        {"protect_head_tokens": -1},
        {"protect_tail_tokens": 1.5},
        {"max_access_count": True},
        {"compact_level": 1},
        {"compact_level": 3, "max_level": 2},
        {"max_level": 7},
        {"protected": [[3, 2]]},
        {"protected": [[1]]},
        {"protected": "all"},
        {"unknown": 1},
    ],
)
def test_a_wrong_policy_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="curation: "):
        CurationPolicy.from_json(wrong)


def good_plan(folder: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(plan_of(folder, [compaction(2, 1), compaction(3, 1)]).to_json())
    return made


def test_hostile_plans_are_refused(folder: Path) -> None:
    good = good_plan(folder)
    assert CurationPlan.from_json(json.dumps(good)).actions
    changes: list[tuple[list[Any], Any]] = [
        (["format"], "x"),
        (["format_version"], 2),
        (["tree_id"], "../../etc"),
        (["namespace"], ".."),
        (["created"], math.nan),
        (["length"], -1),
        (["length"], 40_000),
        (["extra"], 1),
        (["actions"], {}),
        (["policy", "cold_days"], "x"),
        (["policy", "other"], 1),
        (["actions", 0, "kind"], "wipe"),
        (["actions", 0, "kind"], "delete"),
        (["actions", 0, "node"], [2, 2]),
        (["actions", 0, "node"], [2, 10**30]),
        (["actions", 0, "node"], [10**9, 0]),
        (["actions", 0, "node"], None),
        (["actions", 0, "start"], True),
        (["actions", 0, "tokens"], 7),
        (["actions", 0, "action_id"], "../../../../etc/passwd"),
        (["actions", 0, "action_id"], None),
        (["actions", 0, "reason"], 5),
        (["actions", 1, "action_id"], good["actions"][0]["action_id"]),
        (["actions"], good["actions"][::-1]),
        (["actions"], [good["actions"][0], good["actions"][0]]),
    ]
    for path, value in changes:
        bad = copy.deepcopy(good)
        place = bad
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(RequestError, match="not a curation plan"):
            CurationPlan.from_json(json.dumps(bad))
    for text in ("", "[]", "null", "[" * 100_000, '{"format": 1', b"\xff\xfe", "9" * 10_000):
        with pytest.raises(RequestError, match="not a curation plan"):
            CurationPlan.from_json(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_other_value_anywhere_in_a_plan(folder: Path, data: st.DataObject) -> None:
    plan = good_plan(folder)
    place: Any = plan
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        parsed = CurationPlan.from_json(json.dumps(plan))
    except RequestError:
        return
    assert CurationPlan.from_json(parsed.to_json()) == parsed


def test_columns_that_are_no_numbers_keep_a_node(folder: Path) -> None:
    class Broken:
        def read(self, level: int, start: int, stop: int) -> dict[str, np.ndarray[Any, Any]]:
            ones = np.ones(stop - start, np.uint32)
            names = ("created", "last_access", "access_count", "sensitivity_count")
            return dict.fromkeys(names, ones) | {"sensitivity": np.full(stop - start, np.nan, np.float32)}

    with opened(folder) as tree:
        policy = CurationPolicy(protect_head_tokens=0, protect_tail_tokens=0, protect_sensitivity=1.0)
        assert compacted(make_plan(tree, Broken(), policy, NOW)) == []
