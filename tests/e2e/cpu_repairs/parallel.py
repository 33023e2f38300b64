"""Pipeline parallelism and Ray."""

from types import ModuleType
from typing import Any


def _buffers_between_stages(module: ModuleType) -> None:
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
    module.CpuPlatform.ray_device_key = "GPU"


REPAIRS = {"vllm.v1.worker.gpu_model_runner": _buffers_between_stages, "vllm.platforms.cpu": _ray}
