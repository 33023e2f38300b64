"""Intervals against cases that can be worked out by hand, and against a simulation of what 95 % means."""

import math

import numpy as np
import pytest

from megacontext_vllm.eval.bootstrap import interval, ratio_interval


def test_values_that_do_not_vary_have_no_width() -> None:
    assert interval([0.25] * 7) == (0.25, 0.25)
    assert interval([0.25] * 6, clusters="aabbbc") == (0.25, 0.25)


def test_two_values_by_hand() -> None:
    """Resamples of {0, 1} have the means 0, 0.5, 1 with 1/4, 1/2, 1/4: the 2.5 % points are the ends."""
    assert interval([0.0, 1.0]) == (0.0, 1.0)


def test_rare_ends_by_hand() -> None:
    """Of eight draws of one 1 and seven 0: P(no 1) = .34, P(at most three) = .98, so 97.5 % lies at 3/8."""
    assert interval([1.0] + [0.0] * 7, resamples=20_000) == (0.0, 3 / 8)


def test_one_cluster_says_nothing() -> None:
    assert all(math.isnan(end) for end in interval([0.0, 1.0, 2.0], clusters=["h", "h", "h"]))
    assert all(math.isnan(end) for end in interval([3.0]))


def test_clusters_are_drawn_whole() -> None:
    """Two clusters, all 0 and all 1: no resample can mix them, however many values they have."""
    values = [0.0] * 50 + [1.0] * 50
    clusters = ["zeros"] * 50 + ["ones"] * 50
    assert interval(values, clusters) == (0.0, 1.0)
    alone = interval(values)
    assert 0.35 < alone[0] < 0.45 and 0.55 < alone[1] < 0.65


def test_clusters_of_unequal_size_weigh_by_their_values() -> None:
    """Both drawn once: (3 · 0 + 1 · 1) / 4."""
    values, clusters = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    assert interval(values, clusters, statistic=lambda drawn: float(len(drawn))) == (2.0, 6.0)
    assert interval(values, clusters) == interval(values, clusters, statistic=lambda drawn: float(drawn.mean()))


def test_order_of_clusters_and_repetition_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=60)
    clusters = [int(number) for number in generator.integers(9, size=60)]
    assert interval(values, clusters) == interval(values, clusters)
    assert interval(values, clusters) == interval(values, [f"name {number}" for number in clusters])
    assert interval(values, clusters, seed=1) != interval(values, clusters, seed=2)


def test_more_than_fits_at_once_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).normal(size=50)
    expected = interval(values)
    monkeypatch.setattr("megacontext_vllm.eval.bootstrap._AT_ONCE", 130)
    assert interval(values) == expected


def test_ninety_five_percent_hold_the_truth() -> None:
    """40 clusters of 5 correlated values each, 300 times: about 95 % of the intervals hold the mean 0."""
    generator = np.random.default_rng(5)
    clusters = [cluster for cluster in range(40) for _ in range(5)]
    held = alone = 0
    for _ in range(300):
        values = np.repeat(generator.normal(size=40), 5) + generator.normal(size=200)
        low, high = interval(values, clusters, resamples=400)
        held += low <= 0 <= high
        low, high = interval(values, resamples=400)
        alone += low <= 0 <= high
    assert 0.90 <= held / 300 <= 0.98
    assert alone / 300 < 0.80  # what clusters are for


def test_a_ratio_of_paired_means() -> None:
    """Where every numerator is half its denominator, so is every resample's, whatever the denominators."""
    below = np.random.default_rng(6).normal(1, 0.3, size=30)
    low, high = ratio_interval(below / 2, below)
    assert low == pytest.approx(0.5) and high == pytest.approx(0.5)


def test_a_ratio_by_hand() -> None:
    """(0 + 2) / (1 + 3), alone 0 / 1 and 2 / 3."""
    assert ratio_interval([0.0, 2.0], [1.0, 3.0]) == pytest.approx((0.0, 2 / 3))


def test_a_ratio_in_clusters_is_one_of_sums() -> None:
    numerators, denominators, clusters = [1.0, 0.0, 4.0], [1.0, 1.0, 4.0], ["a", "a", "b"]
    assert ratio_interval(numerators, denominators, clusters) == pytest.approx((0.5, 1.0))


def test_denominators_of_zero_are_left_out() -> None:
    assert ratio_interval([1.0, 1.0], [0.0, 2.0]) == pytest.approx((0.5, 1.0))
    assert all(math.isnan(end) for end in ratio_interval([1.0, 1.0], [0.0, 0.0]))


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]]])
def test_what_is_no_row_of_values_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        interval(values)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ValueError, match="clusters"):
        interval([1.0, 2.0], clusters=["a"])
    with pytest.raises(ValueError, match="denominators"):
        ratio_interval([1.0, 2.0], [1.0])
