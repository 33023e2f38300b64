"""Rows onto their pages; on a GPU through a stream of their own."""

import pytest
import torch

from megacontext_vllm.engine.page_fills import PageFills, Rows


def test_rows_land_where_they_belong() -> None:
    pages = torch.full((3, 32, 5), 7.0)
    fills = PageFills(pages)
    fills.begin_step()
    rows = torch.arange(20.0).view(4, 5)
    fills.copy([Rows(30, rows[:2]), Rows(95, rows[3:])])
    flat = pages.view(-1, 5)
    assert torch.equal(flat[30:32], rows[:2]) and torch.equal(flat[95:], rows[3:])
    assert (flat[:30] == 7).all() and (flat[32:95] == 7).all()
    fills.copy([])
    assert (flat[:30] == 7).all()


def test_rows_take_the_type_of_the_pages() -> None:
    pages = torch.zeros(1, 32, 4, dtype=torch.bfloat16)
    PageFills(pages).copy([Rows(1, torch.full((1, 4), 1.5))])
    assert pages[0, 1].tolist() == [1.5] * 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_sees_its_fills_and_the_step_before_keeps_its_own() -> None:
    """Many steps, nothing waited for by hand: each reads what was copied for it, with the GPU kept busy."""
    pages = torch.zeros(4, 32, 64, device="cuda")
    fills, busy, seen = PageFills(pages), torch.randn(2048, 2048, device="cuda"), []
    for step in range(50):
        fills.begin_step()
        page = step % 2  # this step's page is not the one before's
        fills.copy([Rows(page * 32, torch.full((32, 64), float(step)))])
        busy = (busy @ busy).clamp(-1, 1)
        seen.append(pages[page].clone())
    torch.cuda.synchronize()
    assert all((shown == step).all() for step, shown in enumerate(seen))
