"""What the corpus is made of: one text with its source, licence and split, and the error of everything around it."""

from dataclasses import dataclass
from typing import Literal, get_args

from megacontext_vllm.errors import MegaContextError

Kind = Literal["fiction", "scripture", "speech", "encyclopedia", "reference", "news", "code"]
Split = Literal["train", "validation", "test"]

KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)
PROSE: tuple[Kind, ...] = tuple(kind for kind in KINDS if kind != "code")


class CorpusError(MegaContextError):
    """The corpus is missing, damaged, or cannot be fetched."""


@dataclass(frozen=True)
class Document:
    """One text. ``id`` is "source/name"; ``licence`` is that of the text, an SPDX id or "public domain"."""

    id: str
    source: str
    kind: Kind
    licence: str
    split: Split
    text: str
