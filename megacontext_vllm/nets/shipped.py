"""The weights that come with this package, by the model that they are for."""

from pathlib import Path

from megacontext_vllm.nets.card import read_card

FOLDER = Path(__file__).with_name("weights")


def find_shipped(model_fingerprint: bytes, folder: Path = FOLDER) -> Path | None:
    """The file of weights for this model, or None."""
    for card in sorted(folder.glob("*.json")):
        if read_card(card).model_fingerprint == model_fingerprint.hex():
            return card.with_suffix(".safetensors")
    return None
