"""The 32→1 reduction: all that a pooling GistNet does on the side of the tokens, in one pass over the children."""

import torch


def reduce(children: torch.Tensor, queries: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Softmax-weighted sums of the children of each node, one per query.

    children: ``[n, 32, d]``; queries: ``[H, d]``; bias: ``[H, 32]`` by place in the block -> ``[n, H, d]``.
    ``out[i, h] = Σ_k softmax_k(children[i, k] · queries[h] + bias[h, k]) children[i, k]``

    A constant added to all children moves the sums by it and no weight, so that centring can wait until after the
    reduction; a query of zeros with a bias of zeros gives the mean.
    """
    scores = torch.nn.functional.linear(children, queries).transpose(1, 2) + bias  # [n, H, 32]
    return torch.bmm(scores.softmax(dim=-1), children)
