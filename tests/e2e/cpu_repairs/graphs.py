"""CUDA graphs without CUDA: what is launched in a capture is written down, and launched again on the same memory.

As with a real graph, nothing of Python runs again, and every launch reads and writes where it did at first. To be used
with ``second_runner`` and ``VLLM_USE_BREAKABLE_CUDAGRAPH=1``: vLLM then captures what stands between attention, without
compiling, and the CPU's attention, whose metadata is made anew each step, stays outside.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from cpu_repairs.kept_settings import keep
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

Launch = Callable[[], None]


class Recorder(TorchDispatchMode):
    """Writes operators down while there is a ``tape``, of one graph at a time."""

    tape: list[Launch] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tape = Recorder.tape
        if tape is None:
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("the host waits for the device during a capture")
        if func.namespace == "megacontext":
            # The plugin's Python, which a graph does not run again: what it launches is written down.
            from megacontext_vllm.engine.embedding import _overlay

            with self:
                _overlay(*args)
            return None
        out = func(*args, **kwargs)
        if Recorder.tape is tape:  # else it has ended the capture, to be run between two graphs
            tape.append(lambda: _again(func, args, kwargs, out))
        return out


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
            old.copy_(new)


class Graph:
    """Of ``torch.cuda.CUDAGraph``, what vLLM uses."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def capture_begin(self, pool: Any = None) -> None:
        assert Recorder.tape is None, "one capture at a time"
        Recorder.tape = self.launches

    def capture_end(self) -> None:
        Recorder.tape = None

    def replay(self) -> None:
        for launch in self.launches:
            launch()


def _one_launch_a_kernel(module: ModuleType) -> None:
    """However many operators the interpreter needs for it."""
    executor = module.GridExecutor
    stock = executor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        tape, Recorder.tape = Recorder.tape, None
        with _disable_current_modes():
            stock(self, *args, **kwargs)
        Recorder.tape = tape
        if tape is not None:
            tape.append(lambda: stock(self, *args, **kwargs))

    executor.__call__ = call


def _capture(module: ModuleType) -> None:
    @contextmanager
    def graph_capture(device: Any) -> Iterator[None]:
        with Recorder():
            yield

    module.graph_capture = graph_capture


def _breakable(module: ModuleType) -> None:
    @contextmanager
    def capture_pool(pool: Any, config: Any) -> Iterator[Any]:
        yield pool

    module.capture_pool = capture_pool
    module.weak_ref_tensor = module.weak_ref_tensors = lambda tensors: tensors


def _platform(module: ModuleType) -> None:
    keep("compilation_config.cudagraph_mode", "compilation_config.cudagraph_capture_sizes")(module)
    module.CpuPlatform.graph_pool_handle = lambda self: None
    module.CpuPlatform.support_static_graph_mode = classmethod(lambda cls: True)


def _worker(module: ModuleType) -> None:
    """A GPU's worker captures at the end of its start."""
    torch.cuda.CUDAGraph = Graph  # type: ignore[misc,assignment]
    torch.accelerator.empty_cache = lambda: None
    torch.accelerator.get_memory_info = lambda *device: (0, 0)
    worker = module.CPUWorker
    stock = worker.compile_or_warm_up_model

    def compile_or_warm_up_model(self: Any) -> Any:
        times = stock(self)
        self.model_runner.capture_model(profile_only=True)  # else it locks a workspace, which a CPU does not have
        return times

    worker.compile_or_warm_up_model = compile_or_warm_up_model


def _overlay_kernel(module: ModuleType) -> None:
    """The overlay's Triton kernel, and not what a CPU has in its place."""

    def overlay(embeddings: Any, pages: Any, table: Any, slots: Any) -> None:
        module._overlay(embeddings, pages, table, slots, len(slots))

    module._overlay_on_host = overlay


def _pool(module: ModuleType) -> None:
    stock = module.GistPool.bind

    def bind(self: Any, *args: Any) -> Any:
        spans = stock(self, *args)
        spans.graphs = os.environ.get("OVERLAY_IN_GRAPHS") != "0"  # else the test is to fail
        return spans

    module.GistPool.bind = bind


REPAIRS = {
    "triton.runtime.interpreter": _one_launch_a_kernel,
    "vllm.v1.worker.gpu.cudagraph_utils": _capture,
    "vllm.compilation.breakable_cudagraph": _breakable,
    "vllm.platforms.cpu": _platform,
    "vllm.v1.worker.cpu_worker": _worker,
    "megacontext_vllm.kernels.span_gather": _overlay_kernel,
    "megacontext_vllm.engine.gist_pool": _pool,
}
