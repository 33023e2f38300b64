"""Which GistNet an engine shows gists with."""

from pathlib import Path

import torch
from vllm.config import VllmConfig
from vllm.tokenizers import cached_tokenizer_from_config

from megacontext_vllm.engine.embedding import find_embedding
from megacontext_vllm.errors import UnsupportedEngineError
from megacontext_vllm.nets.gistnet import GistNet, load_gist_net
from megacontext_vllm.nets.model_fingerprint import embedding_digest, model_fingerprint, sampled_ids
from megacontext_vllm.nets.shipped import find_default, shown_by_default

NONE = "none"
UNTRAINED = "random:"


def choose_gist_net(
    name: str | None, vllm_config: VllmConfig, model: torch.nn.Module, device: torch.device
) -> GistNet | None:
    """The net that ``megacontext.gist_net`` asks for; None where unexpanded spans are to be hidden.

    Every rank has to call this, and gets the same: the look-up of embeddings is collective. Raises ConfigError where
    what was asked for does not exist or was made for another model, and UnsupportedEngineError where gists were asked
    for and the model has no embedding layer to show them in.
    """
    dim = vllm_config.model_config.get_hidden_size()
    if name == NONE or (name is None and not shown_by_default(dim)):
        return None
    if name is not None and name.startswith(UNTRAINED):
        return load_gist_net(name, dim)
    try:
        fingerprint = fingerprint_of(vllm_config, model, device)
    except UnsupportedEngineError:
        if name is None:
            return None  # nobody asked for gists
        raise
    if name is None:
        path = find_default(fingerprint)
        return load_gist_net(str(path), dim, fingerprint) if path else None
    return load_gist_net(name, dim, fingerprint)


def fingerprint_of(vllm_config: VllmConfig, model: torch.nn.Module, device: torch.device) -> bytes:
    """The model fingerprint as a worker sees it. Collective."""
    tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
    return model_fingerprint(tokenizer, digest_of(vllm_config, model, device))


@torch.inference_mode()
def digest_of(vllm_config: VllmConfig, model: torch.nn.Module, device: torch.device) -> bytes:
    """``embedding_digest`` of the loaded model. Collective. Raises UnsupportedEngineError if it has no such layer."""
    model_config = vllm_config.model_config
    vocab_size = model_config.get_vocab_size()
    layer = find_embedding(model, vocab_size, model_config.get_hidden_size())
    return embedding_digest(getattr(layer, "look_up", layer)(sampled_ids(vocab_size).to(device)))


def describe(name: str | None, net: GistNet) -> str:
    """For the log: what net this is and where it comes from."""
    if not net.trained:
        return f"untrained ({name})"
    kind = f"{getattr(net, 'architecture', type(net).__name__)} net {net.fingerprint.hex()[:12]}"
    source = "which comes with this version" if name in (None, "shipped") else f"of {Path(str(name)).resolve()}"
    return f"{kind} {source}"
