"""Windows lie inside documents, and every place of every source has its turn."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.gists.windows import draw


@dataclass(frozen=True)
class Stream:
    tokens: NDArray[np.uint32]
    starts: NDArray[np.int64]
    ids: list[str]


def stream(**sizes: list[int]) -> Stream:
    """Documents of these sizes by source; a token is its document's number · 1,000 + its place there."""
    names = [f"{source}/{number}" for source, some in sizes.items() for number in range(len(some))]
    lengths = [size for some in sizes.values() for size in some]
    tokens = np.concatenate([1000 * number + np.arange(size) for number, size in enumerate(lengths)])
    return Stream(tokens.astype(np.uint32), np.cumsum([0, *lengths[:-1]]), names)


def test_a_window_is_consecutive_tokens_of_the_document_it_names() -> None:
    documents = stream(a=[40, 10, 25], b=[30])
    for window in draw(documents, 20, 60, seed=0):
        assert window.document == documents.ids[window.tokens[0] // 1000]
        assert window.source == window.document.partition("/")[0]
        assert window.tokens.tolist() == list(range(window.tokens[0], window.tokens[0] + 20))
        assert window.tokens.dtype == np.uint32


def test_sources_have_their_turns_whatever_their_size() -> None:
    windows = draw(stream(a=[900, 900], b=[21], c=[19, 19]), 20, 10, seed=0)
    assert Counter(window.source for window in windows) == {"a": 5, "b": 5}


def test_every_place_of_a_source_is_as_likely() -> None:
    """Documents of 22, 3 and 21 tokens have 3, 0 and 2 places for 20."""
    firsts = Counter(int(window.tokens[0]) for window in draw(stream(a=[22, 3, 21]), 20, 5000, seed=2))
    assert set(firsts) == {0, 1, 2, 2000, 2001}
    assert all(900 < count < 1100 for count in firsts.values())


def test_a_document_that_just_fits() -> None:
    (window,) = draw(stream(a=[20]), 20, 1, seed=0)
    assert window.tokens.tolist() == list(range(20))


def test_seeds() -> None:
    documents = stream(a=[500], b=[300, 400])
    firsts = [[int(window.tokens[0]) for window in draw(documents, 20, 12, seed)] for seed in (0, 0, 1)]
    assert firsts[0] == firsts[1] != firsts[2]
    assert [int(window.tokens[0]) for window in draw(documents, 20, 5, 0)] == firsts[0][:5]


def test_nothing_fits() -> None:
    with pytest.raises(EvaluationError, match="longest has 19"):
        draw(stream(a=[19, 7]), 20, 1, seed=0)
    with pytest.raises(EvaluationError):
        draw(Stream(np.zeros(0, np.uint32), np.zeros(0, np.int64), []), 20, 1, seed=0)
