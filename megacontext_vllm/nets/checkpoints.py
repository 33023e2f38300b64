"""GistNets on disk: ``gistnet.safetensors`` (bfloat16) with the card ``gistnet.json`` beside it. Never pickle."""

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.card import Card, read_card, write_card
from megacontext_vllm.nets.learned import LearnedGistNet, stored_tensors, weights_fingerprint
from megacontext_vllm.nets.pooling import PoolingGistNet
from megacontext_vllm.nets.transformer import TransformerGistNet

ARCHITECTURES: dict[str, type[LearnedGistNet]] = {
    kind.architecture: kind for kind in (PoolingGistNet, TransformerGistNet)
}
NAME = "gistnet.safetensors"
TRAIN = "make one with 'megacontext train gistnet'"


def save(net: LearnedGistNet, folder: Path, card: Card) -> Card:
    """Write weights and card, each whole or not at all; returns the card with the weights' fingerprint in it."""
    tensors = stored_tensors(net)
    fingerprint = weights_fingerprint(net.architecture, net.sizes, tensors)
    card = replace(card, architecture=net.architecture, sizes=net.sizes, dim=net.dim)
    card = replace(card, gist_fingerprint=fingerprint.hex())
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / NAME
    save_file(tensors, weights.with_suffix(".new"))
    write_card(weights.with_suffix(".json.new"), card)
    os.replace(weights.with_suffix(".new"), weights)
    os.replace(weights.with_suffix(".json.new"), weights.with_suffix(".json"))
    return card


def load(path: Path, dim: int, model_fingerprint: bytes | None = None) -> LearnedGistNet:
    """The net in a folder, or in a ``.safetensors`` file with its card beside it, for a model of width ``dim``.

    ``model_fingerprint`` None: not compared. Raises ConfigError, saying what to do, for anything but a whole checkpoint
    that was made for this model. The parameters are float32 with the stored values.
    """
    weights = _find(path)
    card = read_card(weights.with_suffix(".json"))
    if model_fingerprint is not None and card.model_fingerprint != model_fingerprint.hex():
        raise ConfigError(
            f"{weights} makes gists for {card.model} (fingerprint {card.model_fingerprint}), and this model is another "
            f"one ({model_fingerprint.hex()}): serve that model, or {TRAIN} --model MODEL."
        )
    if card.dim != dim:
        raise ConfigError(
            f"{weights} makes gists of width {card.dim}, and this model's embeddings have {dim}: use weights made for "
            f"it, or {TRAIN} --model MODEL."
        )
    kind = ARCHITECTURES.get(card.architecture)
    if kind is None:
        raise ConfigError(
            f"{weights} is of the architecture {card.architecture!r}, and this version knows "
            f"{', '.join(ARCHITECTURES)}: update megacontext-vllm, or {TRAIN}."
        )
    try:
        net = kind(**card.sizes)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        file = weights.with_suffix(".json")
        raise ConfigError(f"The sizes in {file} make no net: {error}. Copy it again.") from error
    tensors = _read(weights)
    _fill(net, tensors, weights)
    if weights_fingerprint(net.architecture, net.sizes, tensors).hex() != card.gist_fingerprint:
        raise ConfigError(f"{weights} and its card do not belong together, or one is damaged: copy both again.")
    net.seal()
    return net.eval()


def card_of(path: Path) -> Card:
    """The card of the net that ``load`` would read. Raises ConfigError, too."""
    return read_card(_find(path).with_suffix(".json"))


def _find(path: Path) -> Path:
    weights = path / NAME if path.is_dir() else path
    if not weights.is_file():
        pickles = path.is_dir() and [file.name for file in path.iterdir() if file.suffix in (".pt", ".pth", ".bin")]
        if pickles:
            raise ConfigError(
                f"{path} holds {pickles[0]}: a pickle can run anything, so it is never opened. Give a folder with "
                f"{NAME} and its card, or {TRAIN}."
            )
        raise ConfigError(f"{weights} does not exist: give a folder that holds {NAME} and its card, or {TRAIN}.")
    if weights.suffix != ".safetensors":
        raise ConfigError(f"{weights} is not a .safetensors file: give one that is, or {TRAIN}.")
    return weights


def _read(weights: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(weights)
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError(f"{weights} is not a whole safetensors file ({error}): copy it again.") from error
    return tensors


def _fill(net: LearnedGistNet, tensors: dict[str, torch.Tensor], weights: Path) -> None:
    expected = {name: tensor.shape for name, tensor in net.state_dict().items()}
    missing, unknown = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    wrong = sorted(name for name in expected.keys() & tensors.keys() if tensors[name].shape != expected[name])
    if missing or unknown or wrong:
        found = "; ".join(
            f"{what}: {', '.join(names[:3])}"
            for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong))
            if names
        )
        raise ConfigError(f"{weights} does not hold the tensors that its card promises ({found}): copy both again.")
    damaged = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if damaged:
        raise ConfigError(f"{weights} holds values that are no numbers in {damaged[0]}: copy it again, or {TRAIN}.")
    net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
