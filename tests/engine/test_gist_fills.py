"""Gists into their rows; on a GPU through a stream of their own."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.engine.gist_fills import PIECE, GistFills, Rows, _pieces


def test_gists_land_where_they_belong() -> None:
    pages = torch.full((3, 32, 5), 7.0)
    fills = GistFills(pages)
    fills.begin_step()
    gists = torch.arange(20.0).view(4, 5)
    fills.copy([Rows(np.array([30, 64]), gists[:2]), Rows(np.array([95]), gists[3:])])
    flat = pages.view(-1, 5)
    assert torch.equal(flat[[30, 64, 95]], gists[[0, 1, 3]])
    rest = torch.ones(96, dtype=torch.bool)
    rest[[30, 64, 95]] = False
    assert (flat[rest] == 7).all()
    fills.copy([])
    assert (flat[rest] == 7).all()


def test_gists_take_the_type_of_the_pages() -> None:
    pages = torch.zeros(1, 32, 4, dtype=torch.bfloat16)
    GistFills(pages).copy([Rows(np.array([1]), torch.full((1, 4), 1.5))])
    assert pages[0, 1].tolist() == [1.5] * 4


@given(st.lists(st.integers(1, 3 * PIECE), max_size=5))
def test_pieces_are_the_same_rows_in_the_same_order(sizes: list[int]) -> None:
    ends = np.cumsum([0, *sizes])
    where, gists = np.arange(ends[-1])[::-1].copy(), torch.arange(int(ends[-1]))[:, None]
    fills = [Rows(where[start:stop], gists[start:stop]) for start, stop in pairwise(ends)]
    pieces = list(_pieces(fills))
    counts = [sum(len(part.where) for part in piece) for piece in pieces]
    assert all(count == PIECE for count in counts[:-1]) and all(0 < count <= PIECE for count in counts)
    parts = [part for piece in pieces for part in piece]
    assert np.array_equal(np.concatenate([part.where for part in parts] or [where]), where)
    assert all(len(part.where) == len(part.gists) for part in parts)
    assert torch.equal(torch.cat([part.gists for part in parts] or [gists]), gists)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_sees_its_fills_and_the_step_before_keeps_its_own() -> None:
    """Many steps, nothing waited for by hand: each reads what was copied for it, with the GPU kept busy."""
    size = 2 * PIECE + 32  # three pieces
    pages = torch.zeros(2 * size // 32, 32, 64, device="cuda")
    fills, busy, seen = GistFills(pages), torch.randn(2048, 2048, device="cuda"), []
    for step in range(50):
        fills.begin_step()
        where = np.arange(size)[::-1] + step % 2 * size  # this step's rows are not the one before's
        fills.copy([Rows(where.copy(), torch.full((size, 64), float(step)))])
        busy = (busy @ busy).clamp(-1, 1)
        seen.append(pages.view(2, size, 64)[step % 2].clone())
    torch.cuda.synchronize()
    assert all((shown == step).all() for step, shown in enumerate(seen))
