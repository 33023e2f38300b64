"""What every ``megacontext train`` command does before it starts."""

from typing import Any

from megacontext_vllm.errors import ConfigError


def ready_torch(threads: int | None) -> Any:
    """The module torch, on this many CPU threads (None: as many as it wants), with transformers quiet beside it.

    Raises ConfigError where one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(f"Training needs torch and transformers, which come with vLLM: {error}") from error
    transformers.utils.logging.disable_progress_bar()
    if threads:
        torch.set_num_threads(threads)
    return torch
