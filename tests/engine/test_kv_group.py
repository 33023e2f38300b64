"""Which KV cache group gist positions are named by."""

import pytest
import torch
from vllm.v1.kv_cache_interface import (
    CircularBufferSpec,
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    UniformTypeKVCacheSpecs,
)

from megacontext_vllm.engine.kv_group import slot_group
from megacontext_vllm.errors import UnsupportedEngineError

SIZES = {"block_size": 16, "num_kv_heads": 2, "head_size": 8, "dtype": torch.float32}


def config(*specs: KVCacheSpec) -> KVCacheConfig:
    groups = [KVCacheGroupSpec([f"layer.{i}"], spec) for i, spec in enumerate(specs)]
    return KVCacheConfig(num_blocks=4, kv_cache_tensors=[], kv_cache_groups=groups)


def test_the_first_group_whose_tokens_have_slots() -> None:
    full = FullAttentionSpec(**SIZES)
    mamba = MambaSpec(block_size=16, shapes=((2,),), dtypes=(torch.float32,))
    assert slot_group(config(full)) == 0
    assert slot_group(config(mamba, full, full)) == 1
    assert slot_group(config(UniformTypeKVCacheSpecs(block_size=16, kv_cache_specs={"layer.0": full}))) == 0


def test_a_ring_has_no_slots() -> None:
    """It is attention to vLLM, but its runners name no slots for it: gists would silently not be shown."""
    ring = CircularBufferSpec(**SIZES)
    assert not ring.uses_slot_mapping
    assert slot_group(config(ring, FullAttentionSpec(**SIZES))) == 1
    with pytest.raises(UnsupportedEngineError, match="gist_net unset"):
        slot_group(config(ring))
