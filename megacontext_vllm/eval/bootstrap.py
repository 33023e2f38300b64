"""How sure a mean is: 95 % percentile bootstrap intervals over whole clusters, e.g. all questions about one history.

Questions that share a history are not independent, so a resample draws histories, not questions. Deterministic.
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]
Interval = tuple[float, float]
"""``(low, high)``; both nan where nothing can be said: there is a single cluster."""

LOW, HIGH = 0.025, 0.975
_AT_ONCE = 4_000_000  # draws held in memory


def interval(
    values: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    statistic: Callable[[Values], float] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Of the mean, or of ``statistic`` (float64 ``[m]`` → float), of ``values`` ``[n]``.

    ``clusters`` ``[n]``: equal for values that belong together; None if each stands alone. Raises ValueError if there
    are no values.
    """
    data = _checked(values)
    groups = _groups(len(data), clusters)
    if statistic is None:
        return _quantiles(_ratios(data, np.ones_like(data), groups, resamples, seed), groups)
    members = np.split(np.argsort(groups, kind="stable"), np.cumsum(np.bincount(groups))[:-1])
    drawn = np.random.default_rng(seed).integers(len(members), size=(resamples, len(members)))
    found = [statistic(data[np.concatenate([members[group] for group in row])]) for row in drawn]
    return _quantiles(np.array(found, dtype=np.float64), groups)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Of ``mean(numerators) / mean(denominators)``, both ``[n]``, whose pairs are drawn together.

    Resamples whose denominator is zero say nothing and are left out.
    """
    above, below = _checked(numerators), _checked(denominators)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators for {len(below)} denominators")
    groups = _groups(len(above), clusters)
    return _quantiles(_ratios(above, below, groups, resamples, seed), groups)


def _checked(values: ArrayLike) -> Values:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data):
        raise ValueError(f"an interval needs one row of values, at least one; got shape {data.shape}")
    return data


def _groups(length: int, clusters: Sequence[Hashable] | None) -> NDArray[np.int64]:
    """Int64 ``[n]``, numbered from 0 in the order of first appearance."""
    if clusters is None:
        return np.arange(length)
    if len(clusters) != length:
        raise ValueError(f"{len(clusters)} clusters for {length} values")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.int64)


def _ratios(above: Values, below: Values, groups: NDArray[np.int64], resamples: int, seed: int) -> Values:
    """Float64 ``[resamples]``: sum over sum of the clusters drawn."""
    tops, bottoms = np.bincount(groups, above), np.bincount(groups, below)
    count = len(tops)
    generator = np.random.default_rng(seed)
    found = []
    rows = max(1, _AT_ONCE // count)
    for start in range(0, resamples, rows):
        drawn = generator.integers(count, size=(min(rows, resamples - start), count))
        with np.errstate(divide="ignore", invalid="ignore"):
            found.append(tops[drawn].sum(axis=1) / bottoms[drawn].sum(axis=1))
    return np.concatenate(found)


def _quantiles(found: Values, groups: NDArray[np.int64]) -> Interval:
    found = found[np.isfinite(found)]
    if groups.max() == 0 or not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [LOW, HIGH])
    return float(low), float(high)
