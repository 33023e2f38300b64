"""Which model gists and trees belong to: 16 bytes over the tokenizer and the input embeddings.

The same for whoever has the model open, be it vLLM, in any serving type, or transformers.
"""

import hashlib
from typing import Any

import torch

SAMPLED = 64


def sampled_ids(vocab_size: int) -> torch.Tensor:
    """int64 ``[64]``: the tokens whose embeddings stand for the whole table."""
    return torch.linspace(0, vocab_size - 1, SAMPLED).long()


def embedding_digest(rows: torch.Tensor) -> bytes:
    """16 bytes over the embeddings ``[64, d]`` of ``sampled_ids``, rounded so that the serving type does not matter."""
    rows = rows.detach()
    # What float16 cannot hold exactly of a bfloat16 counts as nothing: below its normal numbers bits are lost.
    rows = torch.where(rows.abs() < 2**-14, torch.zeros_like(rows), rows)
    bits = rows.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy()
    return hashlib.blake2b(bits.tobytes(), digest_size=16).digest()


def table_fingerprint(tokenizer: Any, table: torch.Tensor) -> bytes:
    """``model_fingerprint`` of a model whose whole table of embeddings, ``[V, d]``, is at hand, without padding."""
    return model_fingerprint(tokenizer, embedding_digest(table[sampled_ids(len(table)).to(table.device)]))


def model_fingerprint(tokenizer: Any, digest: bytes) -> bytes:
    """16 bytes over the tokenizer's vocabulary and what ``embedding_digest`` gave. ``tokenizer`` has ``get_vocab``."""
    whole = hashlib.blake2b(digest, digest_size=16)
    for token, token_id in sorted(tokenizer.get_vocab().items()):
        whole.update(f"{token_id}\0{token}\0".encode("utf-8", "surrogatepass"))
    return whole.digest()
