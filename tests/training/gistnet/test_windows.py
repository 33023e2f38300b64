from collections import Counter

import numpy as np
import pytest

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.training.gistnet.windows import Windows


@pytest.fixture
def stream() -> TokenStream:
    """Every token is its own place: documents of 100, 40, 300 and 64 tokens."""
    return TokenStream(np.arange(504, dtype=np.uint32), np.array([0, 100, 140, 440]), ["a/0", "b/0", "b/1", "c/0"])


def test_windows_lie_inside_documents_and_reach_all_places(stream: TokenStream) -> None:
    windows = Windows(stream, 64)
    drawn = windows.draw(np.random.default_rng(0), 3000)
    assert drawn.shape == (3000, 64) and (np.diff(drawn, axis=1) == 1).all()
    starts = set(drawn[:, 0].tolist())
    assert starts == {*range(0, 37), *range(140, 377), 440}


def test_small_sources_are_not_drowned(stream: TokenStream) -> None:
    starts = Windows(stream, 64).draw(np.random.default_rng(0), 3000)[:, 0]
    share = Counter(np.searchsorted([100, 140, 440], starts, side="right").tolist())
    assert share[3] / 3000 > 2 / 275  # one place of 275, and drawn more often


def test_spread_takes_sources_in_turn(stream: TokenStream) -> None:
    starts = Windows(stream, 64).spread(np.random.default_rng(0), 6)[:, 0]
    assert np.searchsorted([100, 140, 440], starts, side="right").tolist() == [0, 2, 3, 0, 2, 3]


def test_too_long_a_window_is_refused(stream: TokenStream) -> None:
    with pytest.raises(ConfigError, match="301 tokens"):
        Windows(stream, 301)
