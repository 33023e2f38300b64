"""What a GPU has by default: Model Runner V2, whose kernels Triton's interpreter computes, and asynchronous scheduling.

To be used with ``VLLM_USE_V2_MODEL_RUNNER=1``, ``TRITON_INTERPRET=1`` and ``TORCHDYNAMO_DISABLE=1``: Inductor would
take what is said here of Triton for a compiler.
"""

from types import ModuleType, SimpleNamespace
from typing import Any

from cpu_repairs.kept_settings import keep


def _interpreted_triton(module: ModuleType) -> None:
    """vLLM's CPU build asks whether Triton compiles for a CPU; its kernels run in Triton's interpreter as well."""
    module.backends["cpu"] = module.Backend(compiler=None, driver=SimpleNamespace(is_active=lambda: True))


def _masks(module: ModuleType) -> None:
    """The interpreter refuses a mask that came out of numbers, as in vLLM's for structured output and n-grams."""
    builder = module.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def create_masked_load(self: Any, pointers: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return load(self, pointers, mask, *args)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *args: Any) -> Any:
        mask.data = mask.data.astype(bool)
        return store(self, pointers, value, mask, *args)

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store


def _larger_tiles(module: ModuleType) -> None:
    """The interpreter takes as long for a tile of a vocabulary as for all of it, and sampling cuts it into 48."""
    code = module.gumbel_sample.__code__
    assert code.co_consts.count(1024) == 1, "its tile has another size now"
    consts = tuple(2**16 if value == 1024 else value for value in code.co_consts)
    module.gumbel_sample.__code__ = code.replace(co_consts=consts)


def _top_k_without_triton(module: ModuleType) -> None:
    """Its kernel asks a loop's variable for its type, which is a plain number to the interpreter."""
    module.HAS_TRITON = False


REPAIRS = {
    "triton.backends": _interpreted_triton,
    "triton.runtime.interpreter": _masks,
    "vllm.v1.worker.gpu.sample.gumbel": _larger_tiles,
    "vllm.v1.sample.ops.topk_topp_sampler": _top_k_without_triton,
    "vllm.platforms.cpu": keep("scheduler_config.async_scheduling"),
}
