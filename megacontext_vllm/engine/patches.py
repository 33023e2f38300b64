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


# Names that are subclassed, constructed, called, read or written, beside the patched ones. An attribute that only an
# instance has counts as ``module:Class.attribute``.
TOUCHED = (
    # how plugins are found, and what the environment says
    "vllm.plugins:DEFAULT_PLUGINS_GROUP",
    "vllm.plugins:PLATFORM_PLUGINS_GROUP",
    "vllm.plugins:IO_PROCESSOR_PLUGINS_GROUP",
    "vllm.plugins:STAT_LOGGER_PLUGINS_GROUP",
    "vllm.plugins:ENDPOINT_PLUGINS_GROUP",
    "vllm.plugins:load_endpoint_plugins",
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin",
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.attach_router",
    "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.init_state",
    "vllm.engine.protocol:EngineClient.vllm_config",
    "vllm.envs:VLLM_PLUGINS",
    "vllm.envs:VLLM_ENABLE_V1_MULTIPROCESSING",
    "vllm.envs:VLLM_WORKER_MULTIPROC_METHOD",
    # configuration
    "vllm.engine.arg_utils:EngineArgs.additional_config",
    "vllm.engine.arg_utils:EngineArgs.scheduler_cls",
    "vllm.config:VllmConfig.additional_config",
    "vllm.config:VllmConfig.model_config",
    "vllm.config:VllmConfig.parallel_config",
    "vllm.config:VllmConfig.scheduler_config",
    "vllm.config:CUDAGraphMode",
    "vllm.config:CompilationConfig.cudagraph_mode",
    "vllm.config:VllmConfig.compilation_config",
    "vllm.config:ModelConfig.get_diff_sampling_param",
    "vllm.config:ModelConfig.get_hidden_size",
    "vllm.config:ModelConfig.get_vocab_size",
    "vllm.config:ModelConfig.is_encoder_decoder",
    "vllm.config:ModelConfig.max_model_len",
    "vllm.config:ModelConfig.runner_type",
    "vllm.config:ModelConfig.skip_tokenizer_init",
    "vllm.config:ParallelConfig.decode_context_parallel_size",
    "vllm.config:ParallelConfig.enable_dbo",
    "vllm.config:ParallelConfig.prefill_context_parallel_size",
    "vllm.config:ParallelConfig.worker_cls",
    "vllm.config:ParallelConfig.enable_elastic_ep",
    "vllm.config:SchedulerConfig.async_scheduling",
    "vllm.config:SchedulerConfig.max_num_batched_tokens",
    "vllm.config:SchedulerConfig.max_num_seqs",
    "vllm.config:SchedulerConfig.scheduler_cls",
    # front end
    "vllm.v1.engine.core_client:MPClient.vllm_config",
    "vllm.v1.engine.input_processor:InputProcessor.vllm_config",
    "vllm.v1.kv_cache_interface:AttentionSpec",
    "vllm.v1.kv_cache_interface:KVCacheSpec",
    "vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs",
    "vllm.v1.kv_cache_interface:UniformTypeKVCacheSpecs.kv_cache_specs",
    "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer.stream",
    "vllm.v1.engine.detokenizer:FastIncrementalDetokenizer.skip_special_tokens",
    "vllm.renderers.base:BaseRenderer.config",
    "vllm.renderers.base:BaseRenderer._resources",
    "vllm.renderers.base:BaseRenderer._tokenize_prompt_async",
    "vllm.renderers.base:BaseRenderer.get_tokenizer",
    "vllm.renderers.base:BaseRenderer._wants_offsets",
    "vllm.renderers.base:BaseRenderer._can_produce_offsets",
    "vllm.renderers.base:BaseRenderer._build_tokens_prompt",
    "vllm.renderers.params:TokenizeParams.get_encode_kwargs",
    "vllm.v1.engine.input_processor:InputProcessor.assign_request_id",
    "vllm.v1.engine.parallel_sampling:ParentRequest.get_child_info",
    "vllm.v1.engine:EngineCoreRequest",
    "vllm.sampling_params:SamplingParams.extra_args",
    "vllm.sampling_params:SamplingParams.frequency_penalty",
    "vllm.sampling_params:SamplingParams.max_tokens",
    "vllm.sampling_params:SamplingParams.min_tokens",
    "vllm.sampling_params:SamplingParams.presence_penalty",
    "vllm.sampling_params:SamplingParams.prompt_logprobs",
    "vllm.sampling_params:SamplingParams.repetition_penalty",
    "vllm.exceptions:VLLMValidationError",
    "vllm.entrypoints.generate.beam_search.utils:BeamSearchInstance.beams",
    "vllm.entrypoints.generate.beam_search.utils:BeamSearchSequence.tokens",
    "vllm.entrypoints.llm:LLM.llm_engine",
    # engine core
    "vllm.v1.engine.core:EngineCore.collective_rpc",
    "vllm.v1.engine.core:EngineCore.request_block_hasher",
    "vllm.v1.engine.core:EngineCore.step",
    "vllm.v1.engine.core:EngineCore.step_with_batch_queue",
    "vllm.v1.engine.core:EngineCore.vllm_config",
    "vllm.v1.engine:EngineCoreOutput",
    "vllm.v1.engine:EngineCoreOutputs",
    "vllm.v1.engine:EngineCoreEventType",
    "vllm.tokenizers:cached_tokenizer_from_config",
    "vllm.tokenizers:TokenizerLike.all_special_ids",
    "vllm.tokenizers:TokenizerLike.decode",
    "vllm.tokenizers:TokenizerLike.encode",
    "vllm.tokenizers:TokenizerLike.get_vocab",
    # scheduler; of its interface, what is asked about a request (a held one is not in Scheduler.requests)
    "vllm.v1.core.sched.interface:SchedulerInterface",
    "vllm.v1.core.sched.scheduler:Scheduler.__init__",
    "vllm.v1.core.sched.scheduler:Scheduler.schedule",
    "vllm.v1.core.sched.scheduler:Scheduler.add_request",
    "vllm.v1.core.sched.scheduler:Scheduler.finish_requests",
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
    "vllm.v1.core.sched.scheduler:Scheduler._free_request",
    "vllm.v1.core.sched.scheduler:Scheduler._preempt_request",
    "vllm.v1.core.sched.scheduler:Scheduler._update_request_with_output",
    "vllm.v1.core.sched.scheduler:Scheduler.deferred_waiting",
    "vllm.v1.core.sched.scheduler:Scheduler.running",
    "vllm.v1.core.sched.scheduler:Scheduler.waiting",
    "vllm.v1.core.sched.request_queue:RequestQueue.prepend_request",
    "vllm.v1.core.sched.request_queue:RequestQueue.remove_request",
    "vllm.v1.core.sched.scheduler:Scheduler.get_num_unfinished_requests",
    "vllm.v1.core.sched.scheduler:Scheduler.get_request_counts",
    "vllm.v1.core.sched.scheduler:Scheduler.has_requests",
    "vllm.v1.core.sched.scheduler:Scheduler.shutdown",
    "vllm.v1.core.sched.scheduler:Scheduler.finished_req_ids_dict",
    "vllm.v1.core.sched.scheduler:Scheduler.kv_cache_config",
    "vllm.v1.core.sched.scheduler:Scheduler.kv_cache_manager",
    "vllm.v1.core.sched.scheduler:Scheduler.max_model_len",
    "vllm.v1.core.sched.scheduler:Scheduler.requests",
    "vllm.v1.core.sched.scheduler:Scheduler.vllm_config",
    "vllm.v1.core.sched.scheduler:Scheduler.pause_state",
    "vllm.v1.core.sched.interface:PauseState",
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler",
    # whole classes: a new field that carries prompt tokens would have to be sanitised
    "vllm.v1.core.sched.output:SchedulerOutput",
    "vllm.v1.core.sched.output:NewRequestData",
    "vllm.v1.core.sched.output:CachedRequestData",
    "vllm.v1.core.kv_cache_manager:KVCacheManager.get_block_ids",
    "vllm.v1.outputs:ModelRunnerOutput",
    "vllm.v1.utils:ConstantList",
    "vllm.v1.request:Request.__init__",
    "vllm.v1.request:Request._all_token_ids",
    "vllm.v1.request:Request._block_hasher",
    "vllm.v1.request:Request._output_token_ids",
    "vllm.v1.request:Request.all_token_ids",
    "vllm.v1.request:Request.block_hashes",
    "vllm.v1.request:Request.cache_salt",
    "vllm.v1.request:Request.client_index",
    "vllm.v1.request:Request.drop_stale_output",
    "vllm.v1.request:Request.events",
    "vllm.v1.request:Request.get_finished_reason",
    "vllm.v1.request:Request.is_finished",
    "vllm.v1.request:Request.max_tokens",
    "vllm.v1.request:Request.mm_features",
    "vllm.v1.request:Request.num_computed_tokens",
    "vllm.v1.request:Request.num_output_tokens",
    "vllm.v1.request:Request.num_preemptions",
    "vllm.v1.request:Request.num_prompt_tokens",
    "vllm.v1.request:Request.prompt_embeds",
    "vllm.v1.request:Request.prompt_token_ids",
    "vllm.v1.request:Request.request_id",
    "vllm.v1.request:Request.resumable",
    "vllm.v1.request:Request.sampling_params",
    "vllm.v1.request:Request.spec_token_ids",
    "vllm.v1.request:Request.status",
    "vllm.v1.request:Request.take_events",
    "vllm.v1.request:Request.trace_headers",
    "vllm.v1.request:Request.update_block_hashes",
    "vllm.v1.request:RequestStatus",
    # workers
    "vllm.utils.gpu_sync_debug:gpu_sync_allowed",
    "vllm.utils.torch_utils:async_tensor_h2d",
    "vllm.v1.worker.gpu_worker:Worker.load_model",
    "vllm.v1.worker.gpu_worker:Worker.initialize_from_config",
    "vllm.v1.worker.gpu_worker:Worker.execute_model",
    "vllm.v1.worker.gpu_worker:Worker.model_runner",
    "vllm.v1.worker.gpu_worker:Worker.vllm_config",
    "vllm.v1.worker.cpu_worker:CPUWorker",
    "vllm.v1.worker.cpu_worker:CPUWorker.load_model",
    "vllm.v1.worker.cpu_worker:CPUWorker.initialize_from_config",
    "vllm.v1.worker.cpu_worker:CPUWorker.model_runner",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.device",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.get_model",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.profile_run",
    "vllm.v1.worker.gpu_input_batch:CachedRequestState.output_token_ids",
    "vllm.v1.worker.gpu_input_batch:CachedRequestState.sampling_params",
    "vllm.v1.sample.metadata:SamplingMetadata.frequency_penalties",
    "vllm.v1.sample.metadata:SamplingMetadata.no_penalties",
    "vllm.v1.sample.metadata:SamplingMetadata.output_token_ids",
    "vllm.v1.sample.metadata:SamplingMetadata.presence_penalties",
    "vllm.v1.sample.metadata:SamplingMetadata.prompt_token_ids",
    "vllm.v1.sample.metadata:SamplingMetadata.repetition_penalties",
    "vllm.v1.spec_decode.metadata:SpecDecodeMetadata.num_draft_tokens",
    "vllm.v1.worker.gpu.sample.penalties:PenaltiesState.output_bin_counts",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.device",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.execute_model",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.get_model",
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.profile_run",
    "vllm.v1.worker.cpu_model_runner:CPUModelRunner.get_model",
    "vllm.v1.kv_cache_interface:KVCacheConfig.kv_cache_groups",
    "vllm.v1.kv_cache_interface:KVCacheConfig.num_blocks",
    "vllm.v1.kv_cache_interface:KVCacheGroupSpec.kv_cache_spec",
    "vllm.v1.kv_cache_interface:KVCacheGroupSpec.layer_names",
    "vllm.v1.kv_cache_interface:KVCacheSpec.block_size",
    "vllm.v1.kv_cache_interface:KVCacheSpec.uses_slot_mapping",
    "vllm.distributed.parallel_state:get_pp_group",
    "vllm.distributed.parallel_state:get_tp_group",
    "vllm.distributed.parallel_state:GroupCoordinator.cpu_group",
    "vllm.distributed.parallel_state:GroupCoordinator.is_first_rank",
    "vllm.distributed.parallel_state:GroupCoordinator.is_last_rank",
    "vllm.distributed.parallel_state:GroupCoordinator.ranks",
    "vllm.distributed.parallel_state:GroupCoordinator.rank_in_group",
    # model
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.forward",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.embedding_dim",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.org_vocab_size",
    "vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead",
    "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.reduce_results",
    "vllm.forward_context:get_forward_context",
    "vllm.forward_context:is_forward_context_available",
    "vllm.forward_context:ForwardContext.slot_mapping",
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
