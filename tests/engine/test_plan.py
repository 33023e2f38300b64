"""Planning over real trees: every allowed window works, and prompts hold what the Working Context says."""

from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.engine.content_ids import content_id, is_content_id
from megacontext_vllm.engine.plan import Plan, Planner, PlanRequest
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.lexical import LexicalLens
from megacontext_vllm.focus.working_context import Kind
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.telemetry import NodeTelemetry

FINGERPRINT = b"m" * 16
NET = b"n" * 16
GAP = [901, 902, 903]


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    vocabulary = [f" word{i}" for i in range(1000)]
    settings = MegaContextConfig(store=tmp_path)
    focus = Focus(
        LexicalLens(vocabulary),
        special_ids=frozenset({999}),
        decode=lambda ids: "".join(vocabulary[i] for i in ids),
        head_tokens=settings.head_tokens,
        tail_tokens=settings.tail_tokens,
        gap_ids=tuple(GAP),
    )
    return Planner(
        TreeLibrary(tmp_path, FINGERPRINT),
        focus,
        gist_fingerprint=NET,
        model_fingerprint=FINGERPRINT,
        text_memory=1 << 28,
    )


def plan(planner: Planner, tokens: list[int], window: int, gists: bool, trace: bool = False) -> Plan:
    made = planner.plan(PlanRequest("r", "default", tokens, window, trace), gists=gists)
    planner.library.release(made.tree)
    return made


def history(length: int) -> list[int]:
    return np.random.default_rng(length).integers(0, 900, length).tolist()


@pytest.mark.parametrize("gists", [False, True])
@pytest.mark.parametrize("window", [128, 130, 160, 192, 224, 300, 1024])
def test_every_allowed_window_works(planner: Planner, window: int, gists: bool) -> None:
    for length in (window + 1, window + 31, 2000, 2047, 5000, 40_007):
        made = plan(planner, history(length), window, gists)
        assert len(made.prompt) == len(made.worker_prompt) <= window
        assert made.prompt[-8:] == history(length)[-8:], "the end is always raw"


def test_what_gists_do_not_leave_room_for_is_hidden(planner: Planner, caplog: pytest.LogCaptureFixture) -> None:
    made = plan(planner, history(1_000_001), 128, gists=True)
    assert not made.gist_nodes
    assert any(entry.kind is Kind.GAP for entry in made.context.entries)
    assert "hidden" in caplog.text


def test_gist_positions_hold_content_ids_and_the_workers_see_tokens(planner: Planner) -> None:
    tokens = history(5000)
    made = plan(planner, tokens, 256, gists=True)
    assert [i for i, token in enumerate(made.prompt) if is_content_id(token)] == made.gist_positions.tolist()
    assert max(made.worker_prompt) < 1000
    for position, (level, index) in zip(made.gist_positions.tolist(), made.gist_nodes, strict=True):
        under = tokens[index * 32**level : (index + 1) * 32**level]
        assert made.prompt[position] == content_id(NET, level, np.array(under, dtype=np.uint32))
        assert made.worker_prompt[position] == under[0]


def test_hidden_spans_are_gap_markers(planner: Planner) -> None:
    tokens = history(5000)
    made = plan(planner, tokens, 256, gists=False, trace=True)
    rebuilt: list[int] = []
    for entry in made.context.entries:
        rebuilt += tokens[entry.start : entry.end] if entry.kind is Kind.RAW else GAP
    assert made.prompt == made.worker_prompt == rebuilt
    assert made.described is not None and len(made.described) == len(made.context.entries)
    assert not any("expected_gain" in entry for entry in made.described), "of other lenses than these it is known"


def test_a_failing_plan_lets_its_tree_go(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner.focus.lens, "find", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plan(planner, history(5000), 256, gists=False)
    assert planner.library.open_trees() == 0
    assert planner.library.list("default") == []


@pytest.mark.parametrize("gists", [False, True])
def test_telemetry_tells_what_was_shown_and_expanded(planner: Planner, gists: bool) -> None:
    tokens = history(40_000)
    tokens[20_000:20_003] = [907, 908, 909]
    question = [999, 907, 908, 909, 999]
    for _ in range(2):
        made = plan(planner, tokens + question, 512, gists)
    folder = made.tree.path
    shown = {e.index for e in made.context.entries if e.kind is Kind.RAW and e.reason in ("lens", "recent")}
    assert 20_000 // 32 in shown
    with NodeTelemetry(folder) as telemetry:
        blocks = telemetry.read(1, 0, 1250)
        assert set(np.flatnonzero(blocks["expand_count"]).tolist()) == shown
        assert set(blocks["expand_count"][list(shown)].tolist()) == {2}
        assert (blocks["created"] > 0).all()
        above = telemetry.read(2, 0, 39)
        parents = {block // 32 for block in shown if block < 39 * 32}
        assert set(np.flatnonzero(above["expand_count"]).tolist()) == parents
        cover = {e.index for e in made.context.entries if e.kind is Kind.GIST and e.level == 1}
        assert set(np.flatnonzero(blocks["access_count"]).tolist()) == shown | cover


def test_while_it_is_answered_the_prompts_own_scores_stay(planner: Planner) -> None:
    tokens, answer = history(5000), history(200)
    prompt = np.array(tokens, dtype=np.uint32)
    for said in (32, 64, 200):
        everything = [*tokens, *answer[:said]]
        made = planner.plan(PlanRequest("r", "default", everything, 512, trace=False, answer=said), gists=False)
        planner.library.release(made.tree)
        scored = planner.focus.score_again(np.array(everything, dtype=np.uint32), planner.focus.score(prompt))
        assert made.context == planner.focus.allocate(scored, 512, gists=False)


@pytest.mark.parametrize("length", [0, 1, 16_384, 40_000])
@pytest.mark.parametrize("behind", [0, 70])
def test_the_tokens_of_a_request(length: int, behind: int) -> None:
    ids = history(length + behind)
    for prompt in (ids[:length], np.array(ids[:length], dtype=np.int64)):
        request = PlanRequest("r", "default", prompt, 512, trace=False, answer=behind, behind=ids[length:])
        assert request.tokens().dtype == np.uint32 and request.tokens().tolist() == ids
