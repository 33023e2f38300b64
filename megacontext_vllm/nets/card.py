"""The card of a GistNet: a JSON file beside its weights that says what it is, what it is for, and how it was made."""

import json
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import ConfigError

FORMAT = 1


@dataclass(frozen=True)
class Card:
    """Fingerprints are hexadecimal.

    architecture, sizes  what rebuilds the net.
    dim                  width of the model's embeddings.
    model, model_fingerprint  whose gists it makes: its name for people, and what is checked.
    gist_fingerprint     of the weights; set when they are saved.
    positions            how gists were placed in training: 'compact' is one position an entry.
    by_default           of weights that come with this package: an engine uses them without being asked to.
    data                 what it was trained on: the corpus' manifest hash, splits, number of tokens in it.
    """

    architecture: str
    sizes: dict[str, Any]
    dim: int
    model: str
    model_fingerprint: str
    gist_fingerprint: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    tokens_seen: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    positions: str = "compact"
    by_default: bool = False
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    licence: str = "Apache-2.0"
    format: int = FORMAT


def write_card(path: Path, card: Card) -> None:
    path.write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_card(path: Path) -> Card:
    """Raises ConfigError if it is missing, not JSON, of another format, or lacks something."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: weights of a GistNet come with their card; copy both files.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not the card of a GistNet ({error}); copy it again.") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise ConfigError(
            f"{path} is a card of format {found!r}, this version reads {FORMAT}: take weights made for this version, "
            "or make them with 'megacontext train gistnet'."
        )
    known = {item.name for item in fields(Card)}
    try:
        card = Card(**{key: value for key, value in raw.items() if key in known})
        bytes.fromhex(card.model_fingerprint), bytes.fromhex(card.gist_fingerprint)
        if not isinstance(card.sizes, dict):
            raise TypeError("sizes is not an object")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is not a whole card of a GistNet ({error}); copy it again.") from error
    return card
