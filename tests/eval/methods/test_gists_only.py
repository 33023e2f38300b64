"""Gists only: the finest level that fits, all of it covered, in order."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.eval.context import Gist, Raw
from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.gists_only import GistsOnly, _nodes, _tiling
from megacontext_vllm.eval.prompt import Prompt


@pytest.mark.parametrize(
    ("length", "budget", "level", "cost"),
    [
        (1000, 512, 1, 31 + 8),
        (16_384, 512, 1, 512),
        (16_385, 512, 2, 16 + 1),
        (16_400, 512, 2, 16 + 16),
        (40_000, 512, 2, 39 + 2),
        (1_000_000, 512, 3, 30 + 16 + 18),
    ],
)
def test_by_hand(
    tools: Tools, prompt_of: Callable[..., Prompt], length: int, budget: int, level: int, cost: int
) -> None:
    history = np.random.default_rng(0).integers(100, 40_000, length).astype(np.uint32)
    context = GistsOnly(tools).select(View(prompt_of(history), None), budget)
    assert context.cost == cost
    assert context.pieces[0].stop == 32**level
    assert [piece.start for piece in context.pieces] == [0, *(piece.stop for piece in context.pieces[:-1])]
    assert context.pieces[-1].stop == length
    assert all(isinstance(piece, Gist) for piece in context.pieces[:-1])
    assert context.raw == ([(length - length % 32, length)] if length % 32 else [])
    assert all(isinstance(piece, Raw) or np.isfinite(piece.vector).all() for piece in context.pieces)


@given(st.integers(1, 3_000_000), st.integers(1, 3000))
def test_nodes_fit(length: int, budget: int) -> None:
    nodes, left_out = _nodes(length, budget, 4)
    assert not left_out or len(_tiling(length, 4)) > budget - length % 32, "only what is coarser than all levels"
    if budget >= 36:
        assert len(nodes) + length % 32 + 4 * bool(left_out) <= budget
    assert all((stop - start) in (32, 1024, 32_768, 1_048_576) and start % (stop - start) == 0 for start, stop in nodes)
    edges = [left_out, *(stop for _, stop in nodes)]
    assert [start for start, _ in nodes] == edges[:-1] and edges[-1] == length - length % 32
