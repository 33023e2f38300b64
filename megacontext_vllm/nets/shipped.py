"""The weights that come with this package, by the model that they are for."""

from pathlib import Path

from megacontext_vllm.nets.card import read_card

FOLDER = Path(__file__).with_name("weights")


def shown_by_default(dim: int, folder: Path = FOLDER) -> bool:
    """Whether there are weights for any model of embedding width ``dim`` that are used without being asked for: cheaper
    to ask than ``find_default``, which needs the model's fingerprint.
    """
    cards = [read_card(card) for card in folder.glob("*.json")]
    return any(card.dim == dim and card.by_default for card in cards)


def find_default(model_fingerprint: bytes, folder: Path = FOLDER) -> Path | None:
    """The file of weights for this model, if they are used without being asked for, or None."""
    found = find_shipped(model_fingerprint, folder)
    return found if found and read_card(found.with_suffix(".json")).by_default else None


def find_shipped(model_fingerprint: bytes, folder: Path = FOLDER) -> Path | None:
    """The file of weights for this model, or None."""
    for card in sorted(folder.glob("*.json")):
        if read_card(card).model_fingerprint == model_fingerprint.hex():
            return card.with_suffix(".safetensors")
    return None
