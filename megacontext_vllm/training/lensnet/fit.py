"""Fits the vectors of words: alike where WordNet says related, else as alike as the teacher finds them.

Contrastive over pairs (InfoNCE, van den Oord et al. 2018, arXiv:1807.03748) with the other words of the batch as what
is not meant, plus the KL to the teacher's own likenesses in that batch, which keeps what no dictionary knows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy, kl_div, normalize

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FitRecipe:
    """width: of a vector. steps, batch, lr: of Adagrad, the rate falling to 0. temperature: of both losses.

    teacher: weight of the KL.
    """

    width: int = 128
    steps: int = 3000
    batch: int = 1024
    lr: float = 0.01
    temperature: float = 0.15
    teacher: float = 1.0
    seed: int = 0


def centre(vectors: Matrix, counts: npt.NDArray[np.int64]) -> Matrix:
    """Unit vectors around the mean of the text's words: what all words share tells none apart. counts: int ``[n]``."""
    weights = np.sqrt(counts + 1.0)[:, None]
    moved = vectors - (vectors * weights).sum(axis=0) / weights.sum()
    unit: Matrix = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return unit


def fit(
    teacher: Matrix,
    pairs: npt.NDArray[np.int64],
    shares: npt.NDArray[np.float64],
    recipe: FitRecipe,
    on_step: Callable[[int, float, float], None],
) -> Matrix:
    """Unit vectors float32 ``[n, width]``, the same for the same arguments on one machine.

    teacher  float32 ``[n, d ≥ width]``, of length 1.
    pairs    int64 ``[pairs, 2]``, rows; shares: float64 ``[pairs]``, how often each is drawn, their sum 1.
    on_step  gets the step's number, its contrastive loss and its KL.
    """
    target = torch.from_numpy(teacher)
    table = torch.nn.Parameter(torch.from_numpy(_principal(teacher, recipe.width)))
    optimizer = torch.optim.Adagrad([table], lr=recipe.lr)
    rng = np.random.default_rng(recipe.seed)
    until = np.cumsum(shares)
    apart = torch.arange(recipe.batch)
    for step in range(recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 - step / recipe.steps)
        drawn = pairs[np.searchsorted(until, rng.random(recipe.batch)).clip(max=len(pairs) - 1)]
        turned = rng.random(recipe.batch) < 0.5
        drawn[turned] = drawn[turned][:, ::-1]
        asked, said = torch.from_numpy(drawn).unbind(1)
        likeness = normalize(table[asked], dim=-1) @ normalize(table[said], dim=-1).T / recipe.temperature
        twice = (said == said[:, None]).fill_diagonal_(False)
        contrast = cross_entropy(likeness.masked_fill(twice, float("-inf")), apart)
        taught = target[asked] @ target[said].T / recipe.temperature
        kept = kl_div(likeness.log_softmax(1), taught.log_softmax(1), log_target=True, reduction="batchmean")
        optimizer.zero_grad()
        (contrast + recipe.teacher * kept).backward()
        optimizer.step()
        on_step(step, float(contrast.detach()), float(kept.detach()))
    fitted: Matrix = normalize(table.detach(), dim=-1).numpy()
    return fitted


def _principal(vectors: Matrix, width: int) -> Matrix:
    """The vectors in the directions that most of them need, float32 ``[n, width]``."""
    _, _, directions = np.linalg.svd(vectors[:: max(1, len(vectors) // 20_000)], full_matrices=False)
    return np.ascontiguousarray(vectors @ directions[:width].T)
