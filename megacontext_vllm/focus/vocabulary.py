"""What focus has to know of a tokenizer: any that transformers or vLLM has, and nothing is imported for it."""

import re
from collections.abc import Sequence
from typing import Any

from megacontext_vllm.focus.plain_text import Decode

_MARK = re.compile(r"<[|｜].+[|｜]>")
_BYTES = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
_SPACE = "\u2581"  # as SentencePiece writes it
_SAMPLE, _FEW = 4096, 20
"""Tokens of which one in so many has a space where they are spelled so."""


def surface_strings(tokenizer: Any) -> list[str]:
    """What each token id stands for in text, by id; with the space that it begins with, if any."""
    size = max(tokenizer.get_vocab().values()) + 1
    alone = _decoded(tokenizer, [[i] for i in range(size)])
    if _is_spelled(alone):
        return [*map(spelled_out, alone)]
    if any(text[:1] == " " and text.strip() for text in alone):
        return alone
    # SentencePiece drops the space at the start of a text, so its tokens are looked at behind another one.
    anchor = next((i for i, text in enumerate(alone) if len(text) == 1 and text.isascii() and text.isalpha()), None)
    if anchor is None:
        return alone
    before = alone[anchor]
    behind = _decoded(tokenizer, [[anchor, i] for i in range(size)])
    return [b.removeprefix(before) if b.startswith(before) else a for a, b in zip(alone, behind, strict=True)]


def reader(tokenizer: Any) -> Decode:
    """Token ids to text. vLLM's tokenizers of Mistral give SentencePiece's own spelling of it, and no lines."""
    sample = _decoded(tokenizer, [[i] for i in range(min(_SAMPLE, len(tokenizer.get_vocab())))])
    if _is_spelled(sample):
        return lambda ids: spelled_out(str(tokenizer.decode(ids)))
    return lambda ids: str(tokenizer.decode(ids))


def _is_spelled(alone: Sequence[str]) -> bool:
    """Whether the texts of tokens are SentencePiece's spelling of them."""
    return sum(_SPACE in text for text in alone) * _FEW > len(alone)


def spelled_out(text: str) -> str:
    """``text`` in SentencePiece's spelling as text; bytes that are only a part of a character are ``CUT``."""
    return _BYTES.sub(_characters, text).replace(_SPACE, " ")


def _characters(found: re.Match[str]) -> str:
    return bytes.fromhex(found[0].replace("<0x", "").replace(">", "")).decode("utf-8", "replace")


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    if hasattr(tokenizer, "batch_decode"):
        decoded: list[str] = tokenizer.batch_decode(rows)
        return decoded
    return [str(tokenizer.decode(row)) for row in rows]  # vLLM's own tokenizer classes promise no more than this


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of template and control tokens: they bound messages.

    Some tokenizers do not call them special: ``<｜User｜>`` of DeepSeek is an added token like any other.
    """
    ids = set(tokenizer.all_special_ids)
    for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items():
        if token.special or _MARK.fullmatch(getattr(token, "content", "")):
            ids.add(i)
    return frozenset(ids)
