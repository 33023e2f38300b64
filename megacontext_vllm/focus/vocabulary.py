"""What focus has to know of a tokenizer: any that transformers or vLLM has, and nothing is imported for it."""

from typing import Any


def surface_strings(tokenizer: Any) -> list[str]:
    """What each token id stands for in text, by id."""
    size = max(tokenizer.get_vocab().values()) + 1
    if hasattr(tokenizer, "batch_decode"):
        decoded: list[str] = tokenizer.batch_decode([[i] for i in range(size)])
        return decoded
    return [str(tokenizer.decode([i])) for i in range(size)]  # vLLM's own tokenizer classes promise no more than this


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of template and control tokens: they bound messages."""
    ids = set(tokenizer.all_special_ids)
    ids.update(i for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special)
    return frozenset(ids)
