"""Gists of the nodes of a window, made from the bottom up, differentiably."""

from collections.abc import Sequence

import torch

from megacontext_vllm.nets.gistnet import BLOCK, GistNet
from megacontext_vllm.training.gistnet.packing import Node


def make_gists(net: GistNet, embeds: torch.Tensor, nodes: Sequence[Node]) -> torch.Tensor:
    """float32 ``[B, len(nodes), d]`` of windows of token embeddings ``[B, W, d]``; nodes are (level ≥ 1, index).

    Each level is made in one call, and of the levels below only what the nodes stand on.
    """
    batch, window, dim = embeds.shape
    top = max(level for level, _ in nodes)
    needed: list[set[int]] = [set() for _ in range(top + 1)]
    for level, index in nodes:
        needed[level].add(index)
    for level in range(top, 1, -1):
        needed[level - 1] |= {child for index in needed[level] for child in range(index * BLOCK, (index + 1) * BLOCK)}
    below = embeds.float()
    row = {index: index for index in range(window)}
    made: dict[Node, torch.Tensor] = {}
    for level in range(1, top + 1):
        indices = sorted(needed[level])
        children = [row[child] for index in indices for child in range(index * BLOCK, (index + 1) * BLOCK)]
        at = torch.tensor(children, device=embeds.device)
        below = net(below[:, at].reshape(-1, BLOCK, dim), level).view(batch, len(indices), dim)
        row = {index: place for place, index in enumerate(indices)}
        made |= {(level, index): below[:, place] for place, index in enumerate(indices)}
    return torch.stack([made[node] for node in nodes], dim=1)
