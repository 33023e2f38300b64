"""What vLLM 0.32's CPU build lacks, and its GPU build has: to test the plugin with. Each repairs one module."""

from types import ModuleType, SimpleNamespace
from typing import Any


def buffers_between_stages(module: ModuleType) -> None:
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


def ray(module: ModuleType) -> None:
    """What a worker takes of Ray; without a name for it, the platform is refused."""
    module.CpuPlatform.ray_device_key = "GPU"


def interpreted_triton(module: ModuleType) -> None:
    """vLLM's CPU build asks whether Triton compiles for a CPU; its kernels run in Triton's interpreter as well."""
    module.backends["cpu"] = module.Backend(compiler=None, driver=SimpleNamespace(is_active=lambda: True))


def masks(module: ModuleType) -> None:
    """The interpreter refuses a mask that came out of numbers, as in vLLM's kernel for structured output."""
    builder = module.InterpreterBuilder
    stock = builder.create_masked_store

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return stock(self, pointers, value, mask, *args)

    builder.create_masked_store = create_masked_store


def larger_tiles(module: ModuleType) -> None:
    """The interpreter takes as long for a tile of a vocabulary as for all of it, and sampling cuts it into 48."""
    code = module.gumbel_sample.__code__
    assert code.co_consts.count(1024) == 1, "its tile has another size now"
    consts = tuple(2**16 if value == 1024 else value for value in code.co_consts)
    module.gumbel_sample.__code__ = code.replace(co_consts=consts)


def asynchronous_scheduling(module: ModuleType) -> None:
    """The CPU platform turns it off, as it gains nothing there."""
    platform = module.CpuPlatform
    stock = platform.check_and_update_config.__func__

    def check_and_update_config(cls: Any, config: Any) -> None:
        asked = config.scheduler_config.async_scheduling
        stock(cls, config)
        config.scheduler_config.async_scheduling = asked

    platform.check_and_update_config = classmethod(check_and_update_config)
