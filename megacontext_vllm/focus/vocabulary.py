"""What focus has to know of a tokenizer: any that transformers or vLLM has, and nothing is imported for it."""

import re
from typing import Any

_MARK = re.compile(r"<[|｜].+[|｜]>")


def surface_strings(tokenizer: Any) -> list[str]:
    """What each token id stands for in text, by id; with the space that it begins with, if any."""
    size = max(tokenizer.get_vocab().values()) + 1
    alone = _decoded(tokenizer, [[i] for i in range(size)])
    if any(text[:1] == " " and text.strip() for text in alone):
        return alone
    # SentencePiece drops the space at the start of a text, so its tokens are looked at behind another one.
    anchor = next((i for i, text in enumerate(alone) if len(text) == 1 and text.isascii() and text.isalpha()), None)
    if anchor is None:
        return alone
    before = alone[anchor]
    behind = _decoded(tokenizer, [[anchor, i] for i in range(size)])
    return [b.removeprefix(before) if b.startswith(before) else a for a, b in zip(alone, behind, strict=True)]


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
