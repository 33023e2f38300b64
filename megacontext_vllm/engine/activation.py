"""How the plugin is asked for, and what it then sets in vLLM's configuration."""

import argparse
import copy
import logging
import os
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from megacontext_vllm.config import SECTION, parse_config
from megacontext_vllm.engine.patches import Patch
from megacontext_vllm.engine.versions import check_version
from megacontext_vllm.errors import ConfigError, UnsupportedEngineError

logger = logging.getLogger("vllm.megacontext")

PLUGIN = "megacontext"
KILL_SWITCH = "MEGACONTEXT_DISABLE"
PLUGIN_GROUPS = (
    "vllm.general_plugins",
    "vllm.platform_plugins",
    "vllm.io_processor_plugins",
    "vllm.stat_logger_plugins",
)
# vLLM takes being named in VLLM_PLUGINS as consent to download; nobody gave it.
CONSENT_BY_NAME = {"lora_hf_hub_resolver"}
WORKERS = {
    "vllm.v1.worker.cpu_worker.CPUWorker": "megacontext_vllm.engine.cpu_worker.MegaContextCPUWorker",
    "vllm.v1.worker.gpu_worker.Worker": "megacontext_vllm.engine.worker.MegaContextGPUWorker",
}
SCHEDULERS = {
    False: "megacontext_vllm.engine.scheduler.MegaContextScheduler",
    True: "megacontext_vllm.engine.scheduler.MegaContextAsyncScheduler",
}


# Holds the value of VLLM_PLUGINS that this module wrote: it asks for the routes of one engine, not for the next engine,
# be it in this process or in a child that inherits the environment.
WRITTEN = "MEGACONTEXT_WROTE_VLLM_PLUGINS"


def is_disabled() -> bool:
    """Whether the environment says to leave stock vLLM."""
    return os.environ.get(KILL_SWITCH, "0") not in ("", "0")


def _asked_for_by_environment() -> bool:
    names = os.environ.get("VLLM_PLUGINS", "")
    return PLUGIN in names.split(",") and names != os.environ.get(WRITTEN)


def _allow_endpoints() -> None:
    """Let vLLM load our HTTP routes, which it only does for plugins named in VLLM_PLUGINS.

    That variable is also the allow-list of every other plugin group, so where it was unset all that would have been
    loaded is named.
    """
    if "VLLM_PLUGINS" in os.environ:
        names = os.environ["VLLM_PLUGINS"].split(",")
    else:
        installed = {point.name for group in PLUGIN_GROUPS for point in entry_points(group=group)}
        names = sorted(installed - CONSENT_BY_NAME)
    if PLUGIN in os.environ.get("VLLM_PLUGINS", "").split(","):
        return
    os.environ["VLLM_PLUGINS"] = os.environ[WRITTEN] = ",".join([*(name for name in names if name != PLUGIN), PLUGIN])


def _wrap_add_cli_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_cli_args(parser: Any) -> Any:
        parser = original(parser)
        group = parser.add_argument_group(
            title="MegaContext",
            description="Histories beyond the window. Settings: --additional-config.megacontext.NAME VALUE.",
        )
        group.add_argument(
            "--plugin",
            choices=[PLUGIN],
            help="'megacontext': serve histories of millions of tokens with this model's own window; over-long "
            "requests are stored in a tree and the model is shown a Working Context of them.",
        )
        return parser

    return add_cli_args


def _wrap_from_cli_args(original: Callable[..., Any]) -> Callable[..., Any]:
    def from_cli_args(cls: Any, args: argparse.Namespace) -> Any:
        engine_args = original(cls, args)
        if getattr(args, "plugin", None) == PLUGIN and is_disabled():
            logger.warning("%s is set: --plugin %s does nothing, and this is stock vLLM.", KILL_SWITCH, PLUGIN)
        elif getattr(args, "plugin", None) == PLUGIN:
            engine_args.additional_config = {SECTION: {}, **(engine_args.additional_config or {})}
        return engine_args

    return from_cli_args


def _wrap_create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        section = (self.additional_config or {}).get(SECTION)
        if section is None and not _asked_for_by_environment():
            return original(self, *args, **kwargs)
        check_version()
        settings = parse_config(section or {})
        # In JSON's form, as vLLM hashes it for its cache of compiled models.
        said = settings.model_dump(mode="json", exclude_unset=True)
        self.additional_config = {**(self.additional_config or {}), SECTION: said}
        if self.scheduler_cls is not None:
            raise ConfigError(
                f"MegaContext brings its own scheduler; leave out --scheduler-cls ({self.scheduler_cls})."
            )
        config = original(self, *args, **kwargs)
        _take_over(config)
        settings.window_for(config.model_config.max_model_len)  # fail now rather than in the engine process
        _allow_endpoints()
        return config

    return create_engine_config


def _wrap_compute_hash(original: Callable[..., Any]) -> Callable[..., Any]:
    def compute_hash(self: Any) -> Any:
        if not is_active(self):
            return original(self)
        # What a model is compiled to depends on none of our settings, but on whether there is an overlay, which is
        # another entry (``embedding.OVERLAY``).
        hashed = copy.copy(self)
        hashed.additional_config = {**self.additional_config, SECTION: {}}
        return original(hashed)

    return compute_hash


def _take_over(config: Any) -> None:
    """Set scheduler and worker in a finished vLLM configuration; refuse what was not built for."""
    parallel, model = config.parallel_config, config.model_config
    if os.environ.get("VLLM_ENABLE_V1_MULTIPROCESSING", "1") == "0":
        raise UnsupportedEngineError(
            "MegaContext needs the engine core in a process of its own: unset VLLM_ENABLE_V1_MULTIPROCESSING=0."
        )
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in ("", "0"):
        raise UnsupportedEngineError(
            "MegaContext lifts the length limit in vLLM's Python front end: unset VLLM_USE_RUST_FRONTEND."
        )
    if model.skip_tokenizer_init:
        raise UnsupportedEngineError("MegaContext needs the tokenizer: leave out --skip-tokenizer-init.")
    refused = {
        "--enable-dbo (micro-batching)": getattr(parallel, "enable_dbo", False),
        "--decode-context-parallel-size": parallel.decode_context_parallel_size > 1,
        "--prefill-context-parallel-size": parallel.prefill_context_parallel_size > 1,
        "an encoder-decoder model": model.is_encoder_decoder,
    }
    for feature, used in refused.items():
        if used:
            raise UnsupportedEngineError(f"MegaContext does not work with {feature} yet; leave it out.")
    _settle_gists(config)
    if model.runner_type != "generate":
        return  # a pooling model reads its whole input; there is nothing to add
    if parallel.worker_cls not in WORKERS:
        raise UnsupportedEngineError(
            f"MegaContext knows vLLM's CPU and GPU workers, not {parallel.worker_cls}: run on one of these platforms."
        )
    parallel.worker_cls = WORKERS[parallel.worker_cls]
    config.scheduler_config.scheduler_cls = SCHEDULERS[bool(config.scheduler_config.async_scheduling)]


def _settle_gists(config: Any) -> None:
    """Refuse gists, if they were asked for, beside what they do not work with; if not, leave them off."""
    section = config.additional_config[SECTION]
    gist_net = parse_config(section).gist_net
    feature = _at_odds_with_gists(config)
    if feature is None or gist_net == "none":
        return
    if gist_net is not None:
        raise UnsupportedEngineError(
            f"MegaContext cannot show gists with {feature} yet: leave megacontext.gist_net unset."
        )
    logger.info("MegaContext: no gists, since they do not work with %s yet.", feature)
    section["gist_net"] = "none"


def _at_odds_with_gists(config: Any) -> str | None:
    speculation = config.speculative_config
    refused = {
        # Such models are fed embeddings that were looked up before there is a slot mapping.
        "a multimodal model": config.model_config.is_multimodal_model,
        "--enable-prompt-embeds": config.model_config.enable_prompt_embeds,
        # A drafter that shares the embedding layer has no slots of the target's layers.
        "speculative decoding other than n-gram": speculation is not None and speculation.method != "ngram",
        # An adapter of the embedding would add the row of the span's first token to its gist.
        "LoRA adapters": config.lora_config is not None,
        # Both hand prompt ids to others before they are sanitised.
        "a KV connector": config.kv_transfer_config is not None,
        # Ranks that are added later load no weights, and so no net that was trained for them.
        "--enable-elastic-ep": getattr(config.parallel_config, "enable_elastic_ep", False),
        "KV cache events": config.kv_events_config is not None and config.kv_events_config.enable_kv_cache_events,
    }
    return next((feature for feature, used in refused.items() if used), None)


def is_active(config: Any) -> bool:
    """Whether a vLLM configuration was taken over."""
    return config.scheduler_config.scheduler_cls in SCHEDULERS.values()


FLAG = (
    Patch(
        target="vllm.engine.arg_utils:EngineArgs.add_cli_args",
        why="the --plugin flag, also in `vllm serve --help`",
        until="vLLM lets plugins declare command-line arguments",
        replace=_wrap_add_cli_args,
    ),
    Patch(
        target="vllm.engine.arg_utils:EngineArgs.from_cli_args",
        why="carries --plugin into additional_config, the one place that reaches every process",
        until="vLLM lets plugins declare command-line arguments",
        replace=_wrap_from_cli_args,
    ),
)
"""Of ``PATCHES``, those without which a command that has the flag is none."""

PATCHES = (
    *FLAG,
    Patch(
        target="vllm.engine.arg_utils:EngineArgs.create_engine_config",
        why="sets the scheduler and worker classes on a finished configuration, where async scheduling and the "
        "platform's worker are known",
        until="vLLM lets a general plugin edit VllmConfig (as platform plugins can)",
        replace=_wrap_create_engine_config,
    ),
    Patch(
        target="vllm.config:VllmConfig.compute_hash",
        why="leaves the plugin's settings out of the key of vLLM's cache of compiled models: none makes it another one",
        until="vLLM asks plugins which of their settings a compiled model depends on",
        replace=_wrap_compute_hash,
    ),
)
