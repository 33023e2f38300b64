"""Reading the best blocks closely, against a plain loop over windows; what it is for: words that belong together."""

import numpy as np
import pytest

from megacontext_vllm.focus import close_reading
from megacontext_vllm.focus.close_reading import MOST, Meant, read_closely
from megacontext_vllm.tree.nodes import BLOCK

WORDS, WIDTH = 50, 16


def closely_read(utility: np.ndarray, rows: np.ndarray, meant: Meant) -> np.ndarray:
    padded = np.pad(rows, BLOCK, constant_values=-1)
    return read_closely(utility, lambda start, length: padded[BLOCK + start[:, None] + np.arange(length)], meant)


def meant(asked: int, seed: int = 0) -> Meant:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((WORDS, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    gains = np.maximum(rng.standard_normal((asked, WORDS)), 0).astype(np.float32) * 5
    centre = vectors[:asked].sum(axis=0)
    loud = rng.random(WORDS).astype(np.float32) * (rng.random(WORDS) < 0.8)
    return Meant(gains, rng.random(asked).astype(np.float32), vectors, loud, centre / np.linalg.norm(centre))


def plain(utility: np.ndarray, rows: np.ndarray, meant: Meant, read: list[int]) -> np.ndarray:
    """The same, one window at a time, in float64."""
    share, likeness = np.zeros(len(utility)), np.zeros(len(utility))
    for block in read:
        for middle in range(block * BLOCK, (block + 1) * BLOCK + 1, 2):
            known = [row for row in rows[max(0, middle - 8) : middle + 8].tolist() if row >= 0]
            best = [max((float(gain[row]) for row in known), default=0.0) for gain in meant.gains]
            share[block] = max(share[block], float(np.dot(best, meant.weights)))
            total = sum((meant.loud[row] * meant.vectors[row].astype(float) for row in known), np.zeros(WIDTH))
            length = np.linalg.norm(total)
            likeness[block] = max(likeness[block], float(total @ meant.centre / length) if length > 1e-6 else 0.0)
    return utility / utility.max() / 3 + share / max(share.max(), 1e-6) / 3 + likeness / 3


@pytest.mark.parametrize("blocks", [1, 2, 7, 40])
@pytest.mark.parametrize("asked", [1, 5])
def test_against_a_plain_loop(blocks: int, asked: int) -> None:
    rng = np.random.default_rng(blocks)
    rows = np.where(rng.random(blocks * BLOCK) < 0.4, rng.integers(0, WORDS, blocks * BLOCK), -1).astype(np.int32)
    utility = rng.random(blocks).astype(np.float32)
    utility[rng.random(blocks) < 0.3] = 0  # what a first look has nothing of is not read
    utility[0] = 1.0
    before = utility.copy()
    closely = closely_read(utility, rows, meant(asked))
    assert closely.dtype == np.float32 and np.array_equal(utility, before)
    read = np.flatnonzero(utility).tolist()
    np.testing.assert_allclose(closely, plain(utility, rows, meant(asked), read), rtol=1e-4, atol=1e-5)
    assert closely.min() >= 0 and closely.max() <= 1 + 1e-6


def test_only_the_best_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(close_reading, "MOST", 3)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, WORDS, 10 * BLOCK).astype(np.int32)
    utility = np.array([5, 1, 2, 9, 3, 8, 0, 4, 6, 7], dtype=np.float32)
    closely = closely_read(utility, rows, meant(3))
    np.testing.assert_allclose(closely, plain(utility, rows, meant(3), [3, 5, 9]), rtol=1e-4, atol=1e-5)
    assert set(np.argsort(-closely)[:3].tolist()) == {3, 5, 9}
    rest = [block for block in range(10) if block not in (3, 5, 9)]
    np.testing.assert_allclose(closely[rest], utility[rest] / 27, rtol=1e-6)


def test_words_that_stand_together_are_worth_more_than_the_same_words_apart() -> None:
    question = meant(3)
    rows = np.full(6 * BLOCK, -1, dtype=np.int32)
    fits = question.gains.argmax(axis=1)
    together, apart = 1, 4
    rows[together * BLOCK + 4 : together * BLOCK + 7] = fits
    rows[apart * BLOCK + np.array([0, 15, 31])] = fits
    utility = np.zeros(6, dtype=np.float32)
    utility[[together, apart]] = 1
    closely = closely_read(utility, rows, question)
    assert closely[together] > closely[apart] > 0


def test_a_window_goes_over_the_boundary_of_a_block() -> None:
    question = meant(4)
    rows = np.full(4 * BLOCK, -1, dtype=np.int32)
    rows[2 * BLOCK - 2 : 2 * BLOCK + 2] = question.gains.argmax(axis=1)
    closely = closely_read(np.ones(4, dtype=np.float32), rows, question)
    assert min(closely[1], closely[2]) > 0.7 and max(closely[0], closely[3]) < 0.34


def test_nothing_to_read() -> None:
    nothing = np.zeros(3, dtype=np.float32)
    assert not closely_read(nothing, np.zeros(3 * BLOCK, dtype=np.int32), meant(2)).any()
    assert closely_read(nothing[:0], np.zeros(0, dtype=np.int32), meant(2)).shape == (0,)
    unknown = closely_read(np.ones(3, dtype=np.float32), np.full(3 * BLOCK, -1, dtype=np.int32), meant(2))
    np.testing.assert_allclose(unknown, 1 / 3, rtol=1e-6)
    assert MOST >= 64, "a budget of 2,048 shows as many"
