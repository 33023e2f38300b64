"""The weights that come with this package, by the model that they are for."""

from pathlib import Path

from megacontext_vllm.nets.card import read_card

FOLDER = Path(__file__).with_name("weights")


def comes_with_width(dim: int, folder: Path = FOLDER) -> bool:
    """Whether there are weights for any model of embedding width ``dim``: cheaper to ask than ``find_shipped``."""
    return any(read_card(card).dim == dim for card in folder.glob("*.json"))


def find_shipped(model_fingerprint: bytes, folder: Path = FOLDER) -> Path | None:
    """The file of weights for this model, or None."""
    for card in sorted(folder.glob("*.json")):
        if read_card(card).model_fingerprint == model_fingerprint.hex():
            return card.with_suffix(".safetensors")
    return None
