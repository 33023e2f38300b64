"""Fails when vLLM moves or reshapes a name that the plugin depends on; also tests the tool that looks ahead."""

import argparse
import ast
import asyncio
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine import EngineCoreRequest, EngineCoreRequestType

from megacontext_vllm.engine import (
    activation,
    answers,
    core,
    folded_output,
    front_end,
    patches,
    token_transport,
    tokenizing,
)

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "check_vllm.py"
PATCHES = (
    *activation.PATCHES,
    *front_end.PATCHES,
    *tokenizing.PATCHES,
    *token_transport.PATCHES,
    *core.PATCHES,
    *answers.PATCHES,
    *folded_output.PATCHES,
)


def _load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_vllm", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_vllm"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = _load_tool()
LEDGER: dict[str, bool] = tool.read_ledger()
RECORDED: dict[str, Any] = json.loads(tool.SNAPSHOT.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def installed() -> Any:
    return tool.installed()


# ---- the ledger and the installed vLLM ------------------------------------------------------------------------------


def test_the_tool_reads_the_ledger_that_is_applied() -> None:
    assert {name for name, patched in LEDGER.items() if patched} == {patch.target for patch in PATCHES}
    assert {name for name, patched in LEDGER.items() if not patched} == set(patches.TOUCHED)
    assert len(patches.TOUCHED) == len(set(patches.TOUCHED))


def test_the_snapshot_is_of_the_ledger() -> None:
    assert set(RECORDED["names"]) == set(LEDGER), "run: .venv/bin/python tools/check_vllm.py --record"


@pytest.mark.parametrize("target", LEDGER)
def test_name_is_where_it_was_and_as_it_was(target: str, installed: Any) -> None:
    recorded = RECORDED["names"].get(target)
    assert recorded is not None, f"{target} is new in the ledger; run: .venv/bin/python tools/check_vllm.py --record"
    found = tool.snapshot([target], installed).get(target)
    if found == recorded:
        return
    user = "wrapped by a Patch" if LEDGER[target] else "read, called or subclassed; look for it"
    pytest.fail(
        f"vLLM {installed.version} moved a name that the plugin depends on.\n"
        f"  name:     {target} ({user} in megacontext_vllm/engine)\n"
        f"  recorded: {recorded} (vLLM {RECORDED['vllm']})\n"
        f"  found:    {found if found is not None else 'nothing'}\n"
        "What to do: read the new code, adapt the engine code that uses it and the ledger (engine/patches.py), run the "
        "engine and e2e tests, widen TESTED in engine/versions.py, then record anew:\n"
        "  .venv/bin/python tools/check_vllm.py --record",
        pytrace=False,
    )


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target.partition(":")[2])
def test_patched_name_is_declared_by_its_class_itself(patch: patches.Patch) -> None:
    owner, name, _ = patches.resolve(patch.target)
    assert name in owner.__dict__, f"{patch.target} is inherited now: patch the class that declares it"


def test_every_import_from_vllm_is_in_the_ledger() -> None:
    known = {target.partition(":")[0] + ":" + target.partition(":")[2].split(".")[0] for target in LEDGER}
    missing = []
    for path in sorted((ROOT / "megacontext_vllm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                names = (f"{node.module}:{alias.name}" for alias in node.names)
                missing += [f"{path.relative_to(ROOT)}: {name}" for name in names if name not in known]
            elif isinstance(node, ast.Import):
                missing += [f"{path.name}: import {a.name}" for a in node.names if a.name.split(".")[0] == "vllm"]
    assert not missing, "add these to TOUCHED in engine/patches.py: " + ", ".join(missing)


def test_names_that_the_plugin_writes_as_strings_are_in_the_ledger(installed: Any) -> None:
    workers = {f"{module}:{name}" for module, _, name in (path.rpartition(".") for path in activation.WORKERS)}
    assert workers <= {target.rpartition(".")[0] for target in LEDGER if target.count(":")} | set(LEDGER)
    groups = [target for target in LEDGER if target.startswith("vllm.plugins:") and target.endswith("_GROUP")]
    values = {tool.describe(installed, group).signature[0].partition(" = ")[2].strip("'") for group in groups}
    assert {*activation.PLUGIN_GROUPS, "vllm.endpoint_plugins"} == values


# ---- applying -------------------------------------------------------------------------------------------------------


@pytest.fixture
def unpatched() -> Iterator[None]:
    """vLLM as it was installed, whatever ran before in this process; put back afterwards."""
    before = []
    for patch in PATCHES:
        owner, name, _ = patches.resolve(patch.target)
        declared = owner.__dict__[name]
        before.append((owner, name, declared))
        original = getattr(getattr(declared, "__func__", declared), patches.MARK, None)
        if original is not None:
            setattr(owner, name, type(declared)(original) if hasattr(declared, "__func__") else original)
    yield
    for owner, name, declared in before:
        setattr(owner, name, declared)


@pytest.mark.usefixtures("unpatched")
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target.partition(":")[2])
def test_applying_twice_wraps_once(patch: patches.Patch) -> None:
    owner, name, _ = patches.resolve(patch.target)
    stock = owner.__dict__[name]
    patches.apply(patch)
    once = owner.__dict__[name]
    patches.apply(patch)
    assert owner.__dict__[name] is once is not stock
    assert type(once) is type(stock), "a classmethod stays one"
    function = getattr(once, "__func__", once)
    original = getattr(function, patches.MARK)
    assert original is getattr(stock, "__func__", stock)
    assert not hasattr(original, patches.MARK)
    assert function.__name__ == original.__name__


@dataclass
class Stock:
    """Stands for vLLM's own method: keeps what it was called with."""

    result: Any = field(default_factory=object)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self.result


class AsyncStock(Stock):
    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, **kwargs)


def _inactive(**model: Any) -> SimpleNamespace:
    """A VllmConfig that was not taken over."""
    scheduler = SimpleNamespace(scheduler_cls=None)
    return SimpleNamespace(scheduler_config=scheduler, model_config=SimpleNamespace(**model), additional_config={})


def _engine_args() -> SimpleNamespace:
    return SimpleNamespace(additional_config={}, scheduler_cls=None)


def _params() -> SimpleNamespace:
    return SimpleNamespace(extra_args=None)


def _metadata() -> SimpleNamespace:
    return SimpleNamespace(no_penalties=False, output_token_ids=[[1]])


def _engine_core_request() -> EngineCoreRequest:
    return EngineCoreRequest("id", [1] * 100_000, None, None, None, 0.0, None, None, None)


# For each patch: what it is called with, for a server that did not ask for the plugin.
CALLS: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {
    "EngineArgs.add_cli_args": lambda: ((argparse.ArgumentParser(),), {}),
    "EngineArgs.from_cli_args": lambda: ((object, argparse.Namespace(model="m", plugin=None)), {}),
    "EngineArgs.create_engine_config": lambda: ((_engine_args(), "usage"), {"headless": True}),
    "VllmConfig.compute_hash": lambda: ((_inactive(),), {}),
    "MPClient._apply_ready_response": lambda: (
        (SimpleNamespace(vllm_config=_inactive(max_model_len=64)), b"payload"),
        {},
    ),
    "InputProcessor.process_inputs": lambda: (
        (SimpleNamespace(vllm_config=_inactive(max_model_len=64)), "id", "prompt"),
        {"params": None},
    ),
    "BaseRenderer.__init__": lambda: ((SimpleNamespace(), _inactive(), None), {}),
    "BeamSearchOnlineMixin.beam_search": lambda: (
        (SimpleNamespace(engine_client=SimpleNamespace(vllm_config=_inactive())), {"prompt_token_ids": [1]}, "r", None),
        {},
    ),
    "BeamSearchOfflineMixin._beam_search_step": lambda: (
        (SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=_inactive())), []),
        {"beam_width": 2},
    ),
    "SyncMPClient._send_input": lambda: (
        (SimpleNamespace(vllm_config=_inactive()), EngineCoreRequestType.ADD, _engine_core_request()),
        {},
    ),
    "AsyncMPClient._send_input": lambda: (
        (SimpleNamespace(vllm_config=_inactive()), EngineCoreRequestType.ADD, _engine_core_request(), b"engine"),
        {},
    ),
    "BaseRenderer.validate_token_ids": lambda: ((SimpleNamespace(), [1] * 100_000), {"parameter": "prompt"}),
    "BaseRenderer.render_chat_async": lambda: ((SimpleNamespace(config=_inactive()), [[]], None), {"tok_params": None}),
    "BaseRenderer.render_cmpl_async": lambda: ((SimpleNamespace(config=_inactive()), ["text"]), {"tok_params": None}),
    "BaseRenderer._tokenize_prompt": lambda: (
        (SimpleNamespace(config=_inactive()), {"prompt": "x" * 100_000}, SimpleNamespace()),
        {},
    ),
    "FastIncrementalDetokenizer.__init__": lambda: (
        (SimpleNamespace(), None, SimpleNamespace(prompt_token_ids=[1] * 100_000)),
        {},
    ),
    "GPUModelRunner._update_streaming_request": lambda: ((SimpleNamespace(), "id", SimpleNamespace()), {}),
    "InputBatch.add_request": lambda: ((SimpleNamespace(), SimpleNamespace(sampling_params=_params())), {}),
    "Sampler.apply_penalties": lambda: ((object(), _metadata(), [[1]]), {}),
    "RejectionSampler.apply_penalties": lambda: (
        (object(), _metadata(), SimpleNamespace(num_draft_tokens=[1]), object(), [[1]]),
        {},
    ),
    "PenaltiesState.add_request": lambda: ((object(), 0, _params()), {}),
    "PenaltiesState.apply_staged_writes": lambda: ((SimpleNamespace(),), {}),
    "EngineCore._initialize_kv_caches": lambda: ((SimpleNamespace(), _inactive()), {}),
    "EngineCore.preprocess_add_request": lambda: (
        (
            SimpleNamespace(vllm_config=_inactive(max_model_len=64), request_block_hasher=len),
            SimpleNamespace(prompt_token_ids=[1] * 65),
        ),
        {},
    ),
}


RETURN_NOTHING = (
    "MPClient._apply_ready_response",
    "BaseRenderer.__init__",
    "FastIncrementalDetokenizer.__init__",
)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.target.partition(":")[2])
def test_hands_through_when_inactive(patch: patches.Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    monkeypatch.setattr(front_end, "_lifted", False)  # tests before this one may have started engines
    name = patch.target.partition(":")[2]
    args, kwargs = CALLS[name]()
    before = repr(args[0])
    kind = AsyncStock if name.endswith("_async") else Stock
    stock = kind(result=args[0] if name == "EngineArgs.add_cli_args" else object())
    result = patch.replace(stock)(*args, **kwargs)
    if kind is AsyncStock:
        result = asyncio.run(result)
    assert result is stock.result or (result is None and name in RETURN_NOTHING)
    assert stock.calls == [(args, kwargs)]
    assert repr(args[0]) == before, "what the method was called on is as it was"


def test_the_flag_is_all_that_is_added_to_the_command_line() -> None:
    patch = next(patch for patch in PATCHES if patch.target.endswith("add_cli_args"))
    parser = argparse.ArgumentParser(add_help=False)
    patch.replace(lambda given: given)(parser)
    assert vars(parser.parse_args([])) == {"plugin": None}


# ---- the tool -------------------------------------------------------------------------------------------------------


def _fake_wheel(folder: Path, sources: dict[str, str], version: str = "9.9.9") -> Path:
    path = folder / f"vllm-{version}-cp38-abi3-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in sources.items():
            archive.writestr(name, text)
    return path


@pytest.fixture
def ledger_sources(installed: Any) -> dict[str, str]:
    """The files of the installed vLLM that describing the ledger reads: a wheel of 2 MB instead of 300."""
    tool.snapshot(LEDGER, installed)
    return {path: installed.read(path) for path in installed.parsed}


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, timeout=120)


def _replaced(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, (old, text.count(old))
    return text.replace(old, new)


def test_tool_says_nothing_moved_for_the_same_code(tmp_path: Path, ledger_sources: dict[str, str]) -> None:
    done = _run("--wheel", _fake_wheel(tmp_path, ledger_sources))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"-> 9.9.9: {len(LEDGER)} names, all the same." in done.stdout


def test_tool_finds_a_moved_name_and_a_changed_signature(tmp_path: Path, ledger_sources: dict[str, str]) -> None:
    sources = dict(ledger_sources)
    sources["vllm/v1/engine/renamed.py"] = sources.pop("vllm/v1/engine/input_processor.py")
    engine = "vllm/v1/engine/core.py"
    sources[engine] = _replaced(
        sources[engine],
        "def preprocess_add_request(self, request: EngineCoreRequest)",
        "def preprocess_add_request(self, request: EngineCoreRequest, wave: int)",
    )
    done = _run("--wheel", _fake_wheel(tmp_path, sources), "--markdown")
    assert done.returncode == 1, done.stdout + done.stderr
    rows = {line.split("`")[1]: line for line in done.stdout.splitlines() if line.startswith("| `vllm")}
    moved = [name for name in LEDGER if "input_processor:" in name]
    changed = "vllm.v1.engine.core:EngineCore.preprocess_add_request"
    assert set(rows) == {*moved, changed}
    assert "| changed | `+ wave: int` |" in rows[changed]
    for name in moved:
        assert "| moved |" in rows[name]
        assert "-> vllm.v1.engine.renamed:InputProcessor." in rows[name]


def test_tool_explains_what_it_cannot_do(tmp_path: Path) -> None:
    nothing = tmp_path / "vllm-1.0-py3-none-any.whl"
    missing = _run("--wheel", nothing)
    assert missing.returncode == 2
    assert str(nothing) in missing.stderr
    nothing.write_bytes(b"not a zip")
    assert _run("--wheel", nothing).returncode == 2
    assert _run().returncode == 2
    assert _run("latest").returncode == 2


OLD = {
    "vllm/a.py": '''
from vllm.b import Base, helper
from .c import deep

class Thing(Base):
    size: "int" = 1

    def __init__(self, x: int, *, y=2) -> None:
        """Text."""
        self.held = x

    def run(self, step: int) -> str:
        """Text."""
        return "a"

    @classmethod
    def make(cls, n): ...
''',
    "vllm/b.py": "class Base:\n    def inherited(self): ...\n\ndef helper(a, b=1): ...\n",
    "vllm/c.py": "from vllm.b import helper as deep\n",
}
TARGETS = [f"vllm.a:Thing{name}" for name in ("", ".size", ".held", ".run", ".make", ".inherited")]
TARGETS += ["vllm.a:helper", "vllm.a:deep"]


def _statuses(new: dict[str, str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    rows = tool.compare(TARGETS, *(tool.Source("0", text, text.__getitem__) for text in (OLD, new)))
    return {row.target.removeprefix("vllm.a:"): (row.status, row.notes) for row in rows if row.status != "same"}


def _edited(path: str, old: str, new: str) -> dict[str, str]:
    return {**OLD, path: _replaced(OLD[path], old, new)}


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (_edited("vllm/a.py", '''int) -> str:
        """Text."""''', "int) -> 'str':\n        # another text"), {}),
        (_edited("vllm/a.py", "self.held = x", "self.kept = x"), {"Thing.held": "missing"}),
        (_edited("vllm/a.py", "y=2", "y=2, z=3"), {"Thing": "grown"}),
        (_edited("vllm/a.py", "x: int, *", "x: int, w, *"), {"Thing": "changed"}),
        (_edited("vllm/a.py", '"int" = 1', "int = 2"), {"Thing.size": "changed"}),
        (_edited("vllm/a.py", "@classmethod", "@staticmethod"), {"Thing.make": "changed"}),
        (_edited("vllm/b.py", "(a, b=1)", "(b=1, *, a)"), {"helper": "changed", "deep": "changed"}),
        ({**OLD, "vllm/a.py": OLD["vllm/a.py"].replace("(Base)", "")}, {"Thing.inherited": "missing"}),
        ({**OLD, "vllm/a.py": OLD["vllm/a.py"].replace("class Thing", "class Other")}, dict.fromkeys(
            ("Thing", "Thing.size", "Thing.held", "Thing.run", "Thing.make", "Thing.inherited"), "missing")),
        ({"vllm/a.py": "from vllm.b import helper, Thing\nfrom vllm.c import deep", "vllm/c.py": OLD["vllm/c.py"],
          "vllm/b.py": OLD["vllm/b.py"] + OLD["vllm/a.py"].partition("deep\n")[2]}, dict.fromkeys(
            ("Thing", "Thing.size", "Thing.held", "Thing.run", "Thing.make"), "moved")),
    ],
)  # fmt: skip
def test_tool_tells_differences_apart(new: dict[str, str], expected: dict[str, str]) -> None:
    assert {name: status for name, (status, _) in _statuses(new).items()} == expected


def test_tool_notes_a_body_that_differs() -> None:
    new = _edited("vllm/a.py", 'return "a"', 'return "b"')
    rows = tool.compare(["vllm.a:Thing.run"], *(tool.Source("0", text, text.__getitem__) for text in (OLD, new)))
    assert [(row.status, row.notes) for row in rows] == [("same", ("body differs",))]


def test_tool_notes_a_method_that_an_interface_gained() -> None:
    old = {"vllm/a.py": "class Interface(ABC):\n    def run(self): ...\n"}
    new = {"vllm/a.py": old["vllm/a.py"] + "    def has(self): ...\n"}
    rows = tool.compare(["vllm.a:Interface"], *(tool.Source("0", text, text.__getitem__) for text in (old, new)))
    assert [(row.status, row.notes) for row in rows] == [("changed", ("+ def has",))]


def test_tool_refuses_a_ledger_that_is_wrong() -> None:
    source = tool.Source("0", OLD, OLD.__getitem__)
    with pytest.raises(tool.CannotCompare, match=r"vllm\.a:gone, which vLLM 0 does not have"):
        tool.compare(["vllm.a:gone"], source, source)
