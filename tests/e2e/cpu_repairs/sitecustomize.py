"""Repairs vLLM's CPU build (``repairs.py``) for pipeline parallelism and Ray, as its modules are imported.

With ``VLLM_USE_V2_MODEL_RUNNER=1`` and ``TRITON_INTERPRET=1``, also for what a GPU has by default: Model Runner V2,
whose kernels Triton's interpreter computes here, and asynchronous scheduling.

Python runs this at the start of every process that has this folder in ``PYTHONPATH``: vLLM's workers, too.
"""

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import repairs

REPAIRS: dict[str, list[Callable[[ModuleType], None]]] = {
    "vllm.v1.worker.gpu_model_runner": [repairs.buffers_between_stages],
    "vllm.platforms.cpu": [repairs.ray],
}
if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    REPAIRS["triton.backends"] = [repairs.interpreted_triton]
    REPAIRS["triton.runtime.interpreter"] = [repairs.masks]
    REPAIRS["vllm.v1.worker.gpu.sample.gumbel"] = [repairs.larger_tiles]
    REPAIRS["vllm.platforms.cpu"].append(repairs.asynchronous_scheduling)


class Repairs(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        wanted = REPAIRS.get(fullname, [])
        spec = PathFinder.find_spec(fullname, path) if wanted else None
        if spec is None or spec.loader is None:
            return None
        stock = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            stock(module)
            for repair in wanted:
                repair(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Repairs())
