"""Tensor and pipeline parallelism, Ray, compiled graphs, with a tiny random model: the gists stay exact there too."""

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import GIST_SEED, Engine, check_gists, greedy, starter, stop, two_devices
from reference import Reference
from vllm.config import CompilationMode

STEPS = 16
MEGACONTEXT = {"gist_net": f"random:{GIST_SEED}", "window": 512}


@pytest.fixture
def start_engine(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """As that of ``conftest.py``, for one test: engines of several workers are large, and would fill the memory."""
    yield from starter(model_dir, tmp_path_factory)


def check(engine: Engine, tiny: Path, history: list[int]) -> None:
    check_gists(engine, Reference(tiny, GIST_SEED), [history, history[1000:9000]], STEPS)


@two_devices
def test_tensor_parallel(
    start_engine: Callable[..., Engine], tiny: Path, history: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = start_engine(MEGACONTEXT, model=str(tiny), tensor_parallel_size=2)
    check(engine, tiny, history)


def test_pipeline_parallel(
    start_engine: Callable[..., Engine],
    tiny: Path,
    history: list[int],
    monkeypatch: pytest.MonkeyPatch,
    repair: Callable[..., None],
) -> None:
    repair("parallel")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    settings = {**MEGACONTEXT, "refocus_tokens": 64, "refocus_share": 1.0}
    # Longer than the engine, so that it folds, and with a new focus on the way.
    prompts = [history[:20], history[:9000]]
    alone = start_engine(settings, model=str(tiny))
    expected = alone.ask(prompts, greedy(900))
    stop(alone)
    engine = start_engine(settings, model=str(tiny), pipeline_parallel_size=2)
    check(engine, tiny, history)
    for one, other in zip(engine.ask(prompts, greedy(900)), expected, strict=True):
        assert list(one.outputs[0].token_ids) == list(other.outputs[0].token_ids)
        assert len(one.outputs[0].token_ids) == 900


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, repair: Callable[..., None]) -> Iterator[None]:
    """A Ray of this machine's, which is told that it has two GPUs: vLLM gives each worker one."""
    repair("parallel")
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    command = [sys.executable, "-m", "ray.scripts.scripts"]
    options = ["--head", "--num-cpus", "4", "--num-gpus", "2", "--include-dashboard", "false", "--disable-usage-stats"]
    subprocess.run([*command, "start", *options], check=True)
    yield
    subprocess.run([*command, "stop"], check=True)


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs `pip install ray`")
@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_ray(
    start_engine: Callable[..., Engine],
    tiny: Path,
    history: list[int],
    monkeypatch: pytest.MonkeyPatch,
    ray: None,
    split: str,
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = start_engine(MEGACONTEXT, model=str(tiny), distributed_executor_backend="ray", **{split: 2})
    check(engine, tiny, history)


COMPILER = pytest.mark.skipif(
    shutil.which("g++") is None or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="torch.compile needs g++ and Python's headers",
)


@COMPILER
def test_compiled(start_engine: Callable[..., Engine], tiny: Path, history: list[int]) -> None:
    engine = start_engine(MEGACONTEXT, model=str(tiny), enforce_eager=False)
    assert engine.llm.llm_engine.vllm_config.compilation_config.mode != CompilationMode.NONE
    check(engine, tiny, history)


@COMPILER
def test_compiled_as_for_a_gpu(
    start_engine: Callable[..., Engine],
    tiny: Path,
    history: list[int],
    monkeypatch: pytest.MonkeyPatch,
    repair: Callable[..., None],
    tmp_path: Path,
) -> None:
    """By vLLM's own backend, in pieces between attention; and loaded from its cache on disk."""
    repair("compiled")
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    compilation = {"mode": CompilationMode.VLLM_COMPILE, "cudagraph_mode": "NONE", "compile_sizes": []}
    caches = []
    for _ in range(2):
        engine = start_engine(
            MEGACONTEXT, model=str(tiny), store=tmp_path / "store", enforce_eager=False, compilation_config=compilation
        )
        assert engine.llm.llm_engine.vllm_config.compilation_config.mode == CompilationMode.VLLM_COMPILE
        check(engine, tiny, history)
        stop(engine)
        caches.append(sorted(tmp_path.glob("torch_compile_cache/torch_aot_compile/*")))
    assert len(caches[0]) == 1 and caches[0] == caches[1], "compiled once"
