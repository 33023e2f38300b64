"""Where numbers stand, against looking for them one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.focus import inverted
from megacontext_vllm.focus.inverted import Inverted


@pytest.mark.parametrize("size", [1, 7, 0xFFFF, 0x10000, 200_000])
@pytest.mark.parametrize("length", [0, 1, 5, 3000])
def test_places(size: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverted, "_PIECE", 1000)
    monkeypatch.setattr(inverted, "_PLACES", 500)
    rng = np.random.default_rng(size + length)
    numbers = rng.integers(-1, size, length).astype(np.int32)
    numbers[rng.random(length) < 0.5] = size - 1
    found = Inverted(numbers, size)
    assert found.counts.tolist() == np.bincount(numbers[numbers >= 0], minlength=size).tolist()
    for wanted in (np.unique(rng.integers(0, size, 5)), np.array([size - 1]), np.arange(size), np.arange(0)):
        expected = np.flatnonzero(np.isin(numbers, wanted))
        assert np.array_equal(found.places(wanted), expected)
        assert np.array_equal(found.places(wanted[::-1]), expected), "in whatever order they are asked for"
        pieces = list(found.in_pieces(wanted[::-1]))
        assert np.array_equal(np.concatenate([part for part, _ in pieces]), wanted[::-1])
        for part, places in pieces:
            assert places.tolist() == [i for number in part for i in np.flatnonzero(numbers == number).tolist()]
            assert len(places) <= 500 + found.counts[part].max(initial=0)


def test_in_blocks() -> None:
    """Each block has a number once at most, and is a place as a whole."""
    numbers = np.array([3, -1, 1, 0, 3, -1, -1, 3], dtype=np.int32)
    found = Inverted(numbers, 4, step=3)
    assert found.places(np.array([3])).tolist() == [0, 1, 2] and found.places(np.array([0, 1])).tolist() == [0, 1]


@given(st.lists(st.integers(-1, 4)), st.sets(st.integers(0, 4)))
def test_few_numbers(numbers: list[int], wanted: set[int]) -> None:
    found = Inverted(np.array(numbers, dtype=np.int16), 5).places(np.array(sorted(wanted), dtype=np.int64))
    assert found.dtype == np.intp and found.tolist() == [i for i, number in enumerate(numbers) if number in wanted]
