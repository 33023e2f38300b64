"""What vLLM 0.32's CPU build lacks of pipeline parallelism and Ray, and its GPU build has: to test the plugin with.

Python runs this at the start of every process that has this folder in ``PYTHONPATH``: vLLM's workers, too.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _buffers(module: ModuleType) -> None:
    """The GPU runner makes the buffers for what a stage receives in its profiling run; the CPU's has none."""
    runner = module.GPUModelRunner
    stock = runner.sync_and_gather_intermediate_tensors

    def sync_and_gather_intermediate_tensors(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.intermediate_tensors is None:
            self.intermediate_tensors = self.model.make_empty_intermediate_tensors(
                batch_size=self.max_num_tokens, dtype=self.model_config.dtype, device=self.device
            )
        return stock(self, *args, **kwargs)

    runner.sync_and_gather_intermediate_tensors = sync_and_gather_intermediate_tensors


def _ray(module: ModuleType) -> None:
    """What a worker takes of Ray; without a name for it, the platform is refused."""
    module.CpuPlatform.ray_device_key = "GPU"  # type: ignore[attr-defined]


_REPAIRS: dict[str, Callable[[ModuleType], None]] = {
    "vllm.v1.worker.gpu_model_runner": _buffers,
    "vllm.platforms.cpu": _ray,
}


class _Repairs(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        repair = _REPAIRS.get(fullname)
        spec = PathFinder.find_spec(fullname, path) if repair else None
        if spec is None or spec.loader is None or repair is None:
            return None
        stock = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            stock(module)
            repair(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Repairs())
