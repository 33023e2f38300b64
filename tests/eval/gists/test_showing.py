"""The model's inputs are what the layout says, entry by entry."""

import pytest
import torch

from megacontext_vllm.eval.gists.layouts import HARD_1, HARMLESS, NEAR_1, NEAR_2, STANDARD, TARGETS, GistLayout
from megacontext_vllm.eval.gists.showing import Positions, Showing

EMBEDDING = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
LAYOUT = GistLayout("three", 1, 3, 10)
WINDOWS = torch.randint(0, 500, (2, LAYOUT.length), generator=torch.Generator().manual_seed(1))
GISTS = torch.randn(2, 3, 8)
SINK = 7


@pytest.fixture
def showing() -> Showing:
    return Showing(EMBEDDING, SINK)


def test_the_layouts_of_the_definition() -> None:
    assert (HARD_1.gists, HARD_1.tail, HARD_1.older, HARD_1.length) == (28, 128, 896, 1024 + TARGETS)
    assert NEAR_1.tail <= 32 and NEAR_2.level == 2 and NEAR_2.tail == 0
    assert {layout.level for layout in STANDARD} == {1, 2}
    assert {layout.gists for layout in HARMLESS} >= {1, 1024} and not any(layout.full for layout in HARMLESS)
    names = [layout.name for layout in (*STANDARD, *HARMLESS)]
    assert len(set(names)) == len(names)


def test_full(showing: Showing) -> None:
    shown = showing.full(WINDOWS)
    for rows, window in zip(shown.rows, WINDOWS, strict=True):
        assert torch.equal(rows, EMBEDDING[torch.tensor([SINK, *window.tolist()[:-1]])])
    assert shown.positions.tolist() == list(range(1 + 96 + 10 + TARGETS - 1))


def test_dropped(showing: Showing) -> None:
    shown = showing.dropped(WINDOWS, LAYOUT)
    for rows, window in zip(shown.rows, WINDOWS, strict=True):
        assert torch.equal(rows, EMBEDDING[torch.tensor([SINK, *window.tolist()[96:-1]])])
    assert shown.positions.tolist() == list(range(1 + 10 + TARGETS - 1))


def test_gisted(showing: Showing) -> None:
    shown = showing.gisted(WINDOWS, LAYOUT, GISTS, Positions.COMPACT)
    for rows, window, gists in zip(shown.rows, WINDOWS, GISTS, strict=True):
        expected = [EMBEDDING[SINK][None], gists, EMBEDDING[window[96:106]], EMBEDDING[window[106:-1]]]
        assert torch.equal(rows, torch.cat(expected))
    assert shown.positions.tolist() == list(range(1 + 3 + 10 + TARGETS - 1))


def test_positions_of_spans(showing: Showing) -> None:
    """Tokens of the window stand at 1, 2, …; gists of 1–32, 33–64, 65–96 in the middle, at 17, 49, 81."""
    shown = showing.gisted(WINDOWS, LAYOUT, GISTS, Positions.SPAN)
    assert shown.positions.tolist() == [0, 17, 49, 81, *range(97, 97 + 10 + TARGETS - 1)]
    assert torch.equal(shown.rows, showing.gisted(WINDOWS, LAYOUT, GISTS, Positions.COMPACT).rows)


def test_the_last_gist_alone(showing: Showing) -> None:
    shown = showing.gisted(WINDOWS, LAYOUT, GISTS[:, -1:], Positions.SPAN)
    assert torch.equal(shown.rows[:, 1], GISTS[:, -1]) and torch.equal(shown.rows[:, 2], EMBEDDING[WINDOWS[:, 96]])
    assert shown.positions.tolist()[:3] == [0, 81, 97]


def test_no_tail(showing: Showing) -> None:
    layout = GistLayout("near", 1, 3, 0)
    shown = showing.gisted(WINDOWS[:, : layout.length], layout, GISTS, Positions.COMPACT)
    assert shown.rows.shape[1] == 1 + 3 + TARGETS - 1
