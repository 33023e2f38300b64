"""Worker subclasses: stock vLLM workers that also keep the gist pool and do gist work before each forward pass."""

from typing import TYPE_CHECKING, Any

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.worker.gpu_worker import Worker

from megacontext_vllm.config import SECTION, MegaContextConfig, parse_config
from megacontext_vllm.engine import answers, folded_output
from megacontext_vllm.engine.description import WorkerDescription, this_machine
from megacontext_vllm.engine.embedding import (
    OVERLAY,
    OVERLAY_VERSION,
    find_embedding,
    install_span_table,
    overlay_embedding,
)
from megacontext_vllm.engine.gist_net import choose_gist_net, describe, digest_of
from megacontext_vllm.engine.gist_pool import GistPool
from megacontext_vllm.engine.gist_rows import check_pool_size, default_pages, pages_needed
from megacontext_vllm.engine.kv_group import slot_group
from megacontext_vllm.engine.patches import apply
from megacontext_vllm.engine.pipeline import FirstStage, LastStage, only_makes_gists
from megacontext_vllm.engine.step_work import ATTRIBUTE
from megacontext_vllm.errors import UnsupportedEngineError


class MegaContextWorker:
    """Mixin over a vLLM worker class; see ``MegaContextGPUWorker`` and ``MegaContextCPUWorker``."""

    if TYPE_CHECKING:
        vllm_config: VllmConfig
        model_runner: Any

    gist_pool: GistPool | None = None

    @property
    def _settings(self) -> MegaContextConfig:
        return parse_config(self.vllm_config.additional_config[SECTION])

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """Load the model, then the gist pool: before profiling, so that vLLM sizes its KV cache around it."""
        for patch in (*answers.PATCHES, *folded_output.PATCHES):
            apply(patch)
        result = super().load_model(*args, **kwargs)  # type: ignore[misc]
        settings = self._settings
        if not get_pp_group().is_first_rank:
            if get_pp_group().is_last_rank:
                self._wait_for_the_first_stage()
            return result
        model, config = self.model_runner.get_model(), self.vllm_config
        net = choose_gist_net(settings.gist_net, config, model, self.model_runner.device)
        if net is None:
            return result
        model_config, batched = config.model_config, config.scheduler_config.max_num_batched_tokens
        dim = model_config.get_hidden_size()
        layer = overlay_embedding(find_embedding(model, model_config.get_vocab_size(), dim))
        config.additional_config[OVERLAY] = OVERLAY_VERSION
        pages = settings.gist_pool_pages or default_pages(batched)
        check_pool_size(pages, pages_needed(batched), page_bytes=32 * dim * layer.weight.element_size())
        self.gist_pool = GistPool(net, layer, pages, writes=get_tp_group().rank_in_group == 0)
        self._wrap_runner()
        return result

    def _wrap_runner(self) -> None:
        # The runner's methods, not the worker's: Ray's executor calls the former.
        stock, stock_profile_run = self.model_runner.execute_model, self.model_runner.profile_run
        pool = self.gist_pool
        assert pool is not None
        tokens_per_step = self._settings.gist_tokens_per_step
        stages = get_pp_group()
        first = None if stages.is_last_rank else FirstStage(stages)

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                pool.run(getattr(scheduler_output, ATTRIBUTE, None))
            finally:  # whatever went wrong: the last stage would wait for ever
                if first is not None and only_makes_gists(scheduler_output):
                    first.done()
            return stock(scheduler_output, *args, **kwargs)

        def profile_run(*args: Any, **kwargs: Any) -> Any:
            pool.profile(tokens_per_step)
            return stock_profile_run(*args, **kwargs)

        self.model_runner.execute_model = execute_model
        self.model_runner.profile_run = profile_run

    def _wait_for_the_first_stage(self) -> None:
        stock, last = self.model_runner.execute_model, LastStage(get_pp_group())

        def execute_model(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            if only_makes_gists(scheduler_output):
                last.wait()
            return stock(scheduler_output, *args, **kwargs)

        self.model_runner.execute_model = execute_model

    def initialize_from_config(self, kv_cache_config: KVCacheConfig) -> Any:
        """Set up the KV cache, then the span table over its slots: before graphs are captured."""
        result = super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        if self.gist_pool is not None:
            group = kv_cache_config.kv_cache_groups[slot_group(kv_cache_config)]
            slots = kv_cache_config.num_blocks * group.kv_cache_spec.block_size
            graphs = self.vllm_config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE
            install_span_table(self.gist_pool.bind(slots, group.layer_names[0], graphs))
        return result

    @torch.inference_mode()
    def megacontext_describe(self) -> WorkerDescription:
        """Remote-procedure call at start-up, on all ranks at once: the sampled look-up is collective."""
        digest = b""
        if get_pp_group().is_first_rank:
            try:
                digest = digest_of(self.vllm_config, self.model_runner.get_model(), self.model_runner.device)
            except UnsupportedEngineError:
                # Without gists the tree holds token ids only, and the tokenizer tells these apart well enough.
                return WorkerDescription(digest, None, False, 0)
        pool = self.gist_pool
        return WorkerDescription(
            embedding_digest=digest,
            gist_fingerprint=pool.net.fingerprint if pool else None,
            gist_trained=pool.net.trained if pool else False,
            pool_pages=pool.pages.shape[0] if pool else 0,
            gist_net=describe(self._settings.gist_net, pool.net) if pool else "",
            machine=this_machine(),
        )


class MegaContextGPUWorker(MegaContextWorker, Worker):
    """For ``vllm.v1.worker.gpu_worker.Worker`` (CUDA and ROCm)."""
