"""Fitting of word vectors: what is related comes closer, what nobody relates stays where the teacher has it."""

import numpy as np
import pytest

from megacontext_vllm.training.lensnet.fit import FitRecipe, centre, fit

COUNT, PAIRED = 60, 20
SMALL = FitRecipe(width=16, steps=60, batch=32, lr=0.05)


@pytest.fixture(scope="module")
def teacher() -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(COUNT, 24)).astype(np.float32)
    return centre(vectors, np.ones(COUNT, dtype=np.int64))


def fitted(teacher: np.ndarray, recipe: FitRecipe = SMALL) -> tuple[np.ndarray, list[float]]:
    """Words 0 and 1, 2 and 3 ... of the first twenty are pairs."""
    pairs = np.arange(PAIRED).reshape(-1, 2)
    losses: list[float] = []
    shares = np.full(len(pairs), 1 / len(pairs))
    return fit(teacher, pairs, shares, recipe, lambda _step, contrast, _kept: losses.append(contrast)), losses


def test_pairs_come_closer(teacher: np.ndarray) -> None:
    vectors, losses = fitted(teacher)
    assert vectors.shape == (COUNT, 16) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    before, after = (np.sum(v[0:PAIRED:2] * v[1:PAIRED:2], axis=1) for v in (teacher, vectors))
    assert (after > before + 0.3).all() and losses[-1] < 0.6 * losses[0] and len(losses) == 60


def test_words_without_pairs_stay(teacher: np.ndarray) -> None:
    vectors, _ = fitted(teacher)
    still, _ = fitted(teacher, FitRecipe(width=16, steps=0))
    assert np.allclose(vectors[PAIRED:], still[PAIRED:], atol=1e-5)
    likeness, taught = (v[PAIRED:] @ v[PAIRED:].T for v in (still, teacher))
    assert np.corrcoef(likeness.ravel(), taught.ravel())[0, 1] > 0.9, "16 of 24 directions have most of it"


def test_the_teacher_holds_back(teacher: np.ndarray) -> None:
    def moved(weight: float) -> float:
        vectors, _ = fitted(teacher, FitRecipe(width=16, steps=60, batch=32, lr=0.05, teacher=weight))
        still, _ = fitted(teacher, FitRecipe(width=16, steps=0))
        return float(np.abs(vectors @ vectors.T - still @ still.T)[:PAIRED, :PAIRED].mean())

    assert moved(10.0) < 0.8 * moved(0.0)


def test_same_again(teacher: np.ndarray) -> None:
    assert np.array_equal(fitted(teacher)[0], fitted(teacher)[0])
    assert not np.array_equal(fitted(teacher)[0], fitted(teacher, FitRecipe(16, 60, 32, 0.05, seed=1))[0])


def test_centre_weighs_by_use() -> None:
    vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=np.float32)
    mean = (vectors * [[3.0], [1.0], [1.0]]).sum(0) / 5  # the root of the count, plus one under it
    moved = vectors - mean
    assert np.allclose(centre(vectors, np.array([8, 0, 0])), moved / np.linalg.norm(moved, axis=1, keepdims=True))
