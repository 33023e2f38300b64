"""The ledger of everything in vLLM that this plugin wraps, subclasses, constructs or reads.

Each patch says why it is there and which change in vLLM would remove it. Every wrapper hands through unless the
engine's configuration has a ``megacontext`` section. ``tests/engine/test_canaries.py`` fails when a name here moves;
``tools/check_vllm.py VERSION`` compares them with another version.
"""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MARK = "__megacontext_original__"


@dataclass(frozen=True)
class Patch:
    """``target``: ``module:Class.method``. ``replace(original)`` returns the wrapper of a plain function."""

    target: str
    why: str
    until: str
    replace: Callable[[Callable[..., Any]], Callable[..., Any]]


# Names that are subclassed, constructed, called or read, beside the patched ones.
TOUCHED = (
    "vllm.v1.core.sched.scheduler:Scheduler.__init__",
    "vllm.v1.core.sched.scheduler:Scheduler.schedule",
    "vllm.v1.core.sched.scheduler:Scheduler.add_request",
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests",
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
    "vllm.v1.core.sched.scheduler:Scheduler._free_request",
    "vllm.v1.core.sched.scheduler:Scheduler.get_request_counts",
    "vllm.v1.core.sched.scheduler:Scheduler.shutdown",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
    "vllm.v1.core.sched.output:SchedulerOutput",
    "vllm.v1.core.sched.output:NewRequestData",
    "vllm.v1.core.sched.output:CachedRequestData",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_block_ids",
    "vllm.v1.request:Request.__init__",
    "vllm.v1.request:Request.update_block_hashes",
    "vllm.v1.request:RequestStatus",
    "vllm.v1.engine:EngineCoreOutput",
    "vllm.v1.engine:EngineCoreOutputs",
    "vllm.v1.engine:EngineCoreRequest",
    "vllm.v1.engine:FinishReason",
    "vllm.v1.engine.core:EngineCore.collective_rpc",
    "vllm.v1.worker.gpu_worker:Worker.load_model",
    "vllm.v1.worker.gpu_worker:Worker.initialize_from_config",
    "vllm.v1.worker.gpu_worker:Worker.execute_model",
    "vllm.v1.worker.cpu_worker:CPUWorker",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.execute_model",
    "vllm.v1.kv_cache_interface:KVCacheConfig",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.forward",
    "vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead",
    "vllm.forward_context:get_forward_context",
    "vllm.forward_context:is_forward_context_available",
    "vllm.forward_context:ForwardContext",
    "vllm.tokenizers:cached_tokenizer_from_config",
    "vllm.sampling_params:SamplingParams",
    "vllm.exceptions:VLLMValidationError",
    "vllm.plugins:load_endpoint_plugins",
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin",
)


def resolve(target: str) -> tuple[Any, str, Any]:
    """``module:Class.name`` to (owner, attribute name, attribute). Raises AttributeError or ImportError if it moved."""
    module_name, _, path = target.partition(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, name, getattr(owner, name)


def apply(patch: Patch) -> None:
    """Put one patch in place; a second time does nothing."""
    owner, name, current = resolve(patch.target)
    if hasattr(current, MARK) or hasattr(getattr(current, "__func__", None), MARK):
        return
    declared = owner.__dict__[name]
    kind = type(declared) if isinstance(declared, (classmethod, staticmethod)) else None
    original = declared.__func__ if kind is not None else declared
    wrapper = functools.wraps(original)(patch.replace(original))
    setattr(wrapper, MARK, original)
    setattr(owner, name, kind(wrapper) if kind is not None else wrapper)
