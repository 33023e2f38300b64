"""Overlay gists from the paged gist pool onto the output of the embedding layer."""

import torch

PAGE = 32


def span_gather_reference(
    embeddings: torch.Tensor, pages: torch.Tensor, table: torch.Tensor, slot_mapping: torch.Tensor
) -> torch.Tensor:
    """Obviously right form of :func:`span_gather`: one position after the other, on the host.

    Parameters and result as there; returns a new tensor.
    """
    out = embeddings.clone()
    rows = pages.reshape(-1, pages.shape[-1])
    for position, slot in enumerate(slot_mapping.tolist()):
        if slot < 0:
            continue
        row = int(table[slot])
        if row >= 0:
            out[position] = rows[row].to(out.dtype)
    return out


def span_gather(
    embeddings: torch.Tensor, pages: torch.Tensor, table: torch.Tensor, slot_mapping: torch.Tensor
) -> torch.Tensor:
    """Replace the embedding of every position whose KV slot carries a gist.

    Parameters
    ----------
    embeddings: [T, d], any float type. T may exceed ``len(slot_mapping)`` (padding); the rest is left alone.
    pages: [P, 32, d], the gist pool; row ``r`` of the pool is ``pages[r // 32, r % 32]``.
    table: [S] int32, KV slot -> pool row, -1 where the slot holds an ordinary token.
    slot_mapping: [n] int64, KV slot of each position; -1 for padding.

    Returns
    -------
    [T, d], a new tensor of the type of ``embeddings``. No host synchronisation, so that it can be captured in a
    CUDA graph.
    """
    assert pages.dim() == 3 and pages.shape[1] == PAGE and pages.shape[2] == embeddings.shape[-1], pages.shape
    n = min(slot_mapping.shape[0], embeddings.shape[0])
    slots = slot_mapping[:n]
    # A slot beyond the table can only come from a profiling run with made-up slots; it carries no gist.
    known = (slots >= 0) & (slots < table.shape[0])
    rows = torch.where(known, table[slots.clamp(0, table.shape[0] - 1)].long(), -1)
    gists = pages.view(-1, pages.shape[-1])[rows.clamp(min=0)].to(embeddings.dtype)
    out = embeddings.clone()
    out[:n] = torch.where((rows >= 0).unsqueeze(-1), gists, embeddings[:n])
    return out
