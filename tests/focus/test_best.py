"""Where the best of many numbers end, against sorting them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.focus.best import least_of_best


def numbers(kind: str, size: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    few = rng.random(size) < 0.002
    made = {
        "random": rng.random(size) * 2 - 1,
        "zero but for a few": np.where(few, rng.random(size), 0),
        "one but for a few": np.where(few, rng.random(size), 1),
        "a few values": rng.choice([0, 0.1, 0.3, 0.9], size, p=[0.6, 0.3, 0.0995, 0.0005]),
        "in step with the first look": np.where(np.arange(size) % 61 == 0, 1, 0) + rng.random(size),
        "out of step with it": np.where(np.arange(size) % 61 == 0, 0, rng.random(size)),
    }[kind]
    return made.astype(np.float32)


KINDS = ["random", "zero but for a few", "one but for a few", "a few values"]
MISLEADING = ["in step with the first look", "out of step with it"]


@pytest.mark.parametrize("kind", KINDS + MISLEADING)
@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 300) | st.integers(2000, 20_000), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_as_sorting_finds_it(kind: str, size: int, share: float, seed: int) -> None:
    values = numbers(kind, size, seed)
    for count in {max(1, int(share * size)), max(1, int(share * size / 100)), min(size, 10)}:
        assert least_of_best(values, count) == np.sort(values)[size - count]


@pytest.mark.parametrize("count", [0, 4])
def test_so_many_must_be_there(count: int) -> None:
    with pytest.raises(AssertionError):
        least_of_best(np.zeros(3, dtype=np.float32), count)
