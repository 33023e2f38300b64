import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm.config import MegaContextConfig, parse_config
from megacontext_vllm.engine.plan import Plan, PlanRequest
from megacontext_vllm.engine.traces import read_trace, response_id, trace_path, write_trace
from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of
from megacontext_vllm.tree.tree import MegaContextTree

LENGTH, WINDOW = 4000, 512


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[MegaContextTree]:
    library = TreeLibrary(tmp_path, bytes(16))
    yield library.acquire("default", np.arange(LENGTH, dtype=np.uint32)).tree
    library.close()


def settings(tmp_path: Path, **section: object) -> MegaContextConfig:
    return parse_config({"store": str(tmp_path), **section})


def plan_of(tree: MegaContextTree) -> Plan:
    context = allocate(
        LENGTH, WINDOW, np.zeros(LENGTH // 32, np.float32), head=64, tail=64, gists=False, gap_cost=5
    )
    described = [
        {"kind": e.kind.name.lower(), "start": e.start, "end": e.end, "level": e.level} for e in context.entries
    ]
    none = np.empty(0, np.int64)
    return Plan(tree, None, LENGTH, True, 17, context, [], [], none, [], [], {"store": 0.123456}, described)


def request(request_id: str, namespace: str = "default") -> PlanRequest:
    return PlanRequest(request_id, namespace, [], WINDOW, True)


@pytest.mark.parametrize(
    ("internal", "external"),
    [
        ("chatcmpl-abc123-0f1e2d3c", "chatcmpl-abc123"),
        ("cmpl-9-0-0f1e2d3c", "cmpl-9-0"),
        ("0_chatcmpl-abc123-0f1e2d3c", "chatcmpl-abc123"),  # children of n > 1
        ("12_chatcmpl-abc123-0f1e2d3c", "chatcmpl-abc123"),
        ("my_own_id-0f1e2d3c", "my_own_id"),
        ("chatcmpl-abc123", "chatcmpl-abc123"),
        ("x-00000000-0f1e2d3c", "x-00000000"),  # only the last eight are vLLM's
        ("x-0F1E2D3C", "x-0F1E2D3C"),
        ("7", "7"),
    ],
)
def test_the_clients_id_from_the_engines(internal: str, external: str) -> None:
    assert response_id(internal) == external


def test_it_undoes_what_vllm_does() -> None:
    from vllm.utils import random_uuid

    assert response_id(f"chatcmpl-x-{random_uuid():.8}") == "chatcmpl-x"


def test_written_and_read_back(tmp_path: Path, tree: MegaContextTree) -> None:
    write_trace(settings(tmp_path), request("chatcmpl-1-0f1e2d3c"), plan_of(tree))
    trace = read_trace(tmp_path, "default", "chatcmpl-1")
    assert trace is not None
    assert trace["tree"] == tree.tree_id and trace["renewed"] == 0
    assert (trace["history_tokens"], trace["reused_tokens"], trace["window"]) == (LENGTH, 17, WINDOW)
    entries = trace["entries"]
    assert [e["start"] for e in entries] == [0, *(e["end"] for e in entries[:-1])] and entries[-1]["end"] == LENGTH
    raw = sum(e["end"] - e["start"] for e in entries if e["kind"] == "raw")
    gaps = sum(e["kind"] == "gap" for e in entries)
    assert (trace["raw_tokens"], trace["working_context"]) == (raw, raw + 5 * gaps)
    assert trace["seconds"] == {"store": 0.1235}


def test_another_namespace_does_not_find_it(tmp_path: Path, tree: MegaContextTree) -> None:
    mine = namespace_of("my salt")
    write_trace(settings(tmp_path), request("r-0f1e2d3c", mine), plan_of(tree))
    assert read_trace(tmp_path, mine, "r") is not None
    assert read_trace(tmp_path, "default", "r") is None
    assert read_trace(tmp_path, namespace_of("your salt"), "r") is None


@pytest.mark.parametrize("submitted", ["cmpl-x-0-0f1e2d3c", "resp_x_0-0f1e2d3c"])
def test_the_first_prompt_of_a_completion_has_the_responses_id(
    submitted: str, tmp_path: Path, tree: MegaContextTree
) -> None:
    write_trace(settings(tmp_path), request(submitted), plan_of(tree))
    assert read_trace(tmp_path, "default", submitted[: -len("-0-0f1e2d3c")]) is not None


@pytest.mark.parametrize(
    "external", ["../default/r", "..", ".", "a/b", "/etc/passwd", "", ".hidden", "r\n", "é", "r\0", "x" * 201, "%2e%2e"]
)
def test_ids_that_no_response_has_lead_nowhere(external: str, tmp_path: Path, tree: MegaContextTree) -> None:
    write_trace(settings(tmp_path), request("r-0f1e2d3c"), plan_of(tree))
    assert trace_path(tmp_path, "default", external) is None
    assert read_trace(tmp_path, "default", external) is None


def test_an_id_that_is_no_file_name_is_logged_and_written_nowhere(
    tmp_path: Path, tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with caplog.at_level("WARNING", "vllm.megacontext"):
        write_trace(settings(tmp_path), request("../../escape-0f1e2d3c"), plan_of(tree))
    assert "no file name" in caplog.text
    assert sorted(tmp_path.rglob("*")) == before


def test_only_the_newest_are_kept(tmp_path: Path, tree: MegaContextTree) -> None:
    kept = settings(tmp_path, traces_kept=3)
    for i in range(7):
        write_trace(kept, request(f"r{i}-0f1e2d3c"), plan_of(tree))
        path = trace_path(tmp_path, "default", f"r{i}")
        assert path is not None
        os.utime(path, (1000 + i, 1000 + i))  # a file system's clock may be coarse
    found = [i for i in range(7) if read_trace(tmp_path, "default", f"r{i}") is not None]
    assert found == [4, 5, 6]
    write_trace(kept, request("q-0f1e2d3c", "abc"), plan_of(tree))
    assert read_trace(tmp_path, "default", "r4") is not None, "each namespace has a ring of its own"


def test_one_that_another_engine_deletes_meanwhile(
    tmp_path: Path, tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    kept = settings(tmp_path, traces_kept=2)
    write_trace(kept, request("first-0f1e2d3c"), plan_of(tree))
    path = trace_path(tmp_path, "default", "first")
    assert path is not None
    folder = path.parent
    (folder / "gone.json").symlink_to(folder / "nowhere")  # listed, and not there when it is looked at
    write_trace(kept, request("second-0f1e2d3c"), plan_of(tree))
    assert not caplog.records
    assert {path.name for path in folder.iterdir()} == {"first.json", "second.json"}


def test_a_reader_never_sees_half_a_trace(tmp_path: Path, tree: MegaContextTree) -> None:
    plan = plan_of(tree)
    write_trace(settings(tmp_path), request("r-0f1e2d3c"), plan)
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            write_trace(settings(tmp_path), request("r-0f1e2d3c"), plan)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(300):
            trace = read_trace(tmp_path, "default", "r")
            assert trace is not None and trace["history_tokens"] == LENGTH
    finally:
        stop.set()
        writer.join()
    assert [p.name for p in (tmp_path / "traces" / "default").iterdir()] == ["r.json"]


def test_a_store_that_cannot_be_written_costs_no_request(
    tmp_path: Path, tree: MegaContextTree, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "traces").write_text("a file where the folder should be")
    with caplog.at_level("WARNING", "vllm.megacontext"):
        write_trace(settings(tmp_path), request("r-0f1e2d3c"), plan_of(tree))
    assert "could not be written" in caplog.text
    assert json.dumps(plan_of(tree).described)
