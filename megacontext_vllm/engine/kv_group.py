"""Which of a model's KV cache groups speaks the slots that gist positions are named by.

Scheduler and workers must choose alike. Any group with a slot per token will do; hybrid models may list others first.
"""

from vllm.v1.kv_cache_interface import AttentionSpec, KVCacheConfig, KVCacheSpec, UniformTypeKVCacheSpecs

from megacontext_vllm.errors import UnsupportedEngineError


def slot_group(config: KVCacheConfig) -> int:
    """Index of the first attention group. Raises UnsupportedEngineError for a model without attention layers."""
    for index, group in enumerate(config.kv_cache_groups):
        if group.layer_names and _has_slots(group.kv_cache_spec):
            return index
    raise UnsupportedEngineError(
        "This model has no attention layers, so that gists have no KV slots: serve it with megacontext.gist_net unset."
    )


def _has_slots(spec: KVCacheSpec) -> bool:
    if isinstance(spec, UniformTypeKVCacheSpecs):  # layers of one type that differ in size, merged into one group
        return all(_has_slots(layer) for layer in spec.kv_cache_specs.values())
    return isinstance(spec, AttentionSpec) and spec.uses_slot_mapping
