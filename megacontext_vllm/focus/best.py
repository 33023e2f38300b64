"""Where the best of many numbers end, in about one pass, however many of them are equal."""

import numpy as np
import numpy.typing as npt

_STEP = 61  # one number in so many is looked at first; prime, so that it does not keep step with blocks or nodes
_SMALL = 2048  # so few numbers are not worth a first look


def least_of_best(values: npt.NDArray[np.float32], count: int) -> np.float32:
    """The ``count``-th largest of ``values`` (float32 [n], n >= count >= 1), equal ones counted one by one."""
    assert 1 <= count <= len(values)
    if len(values) > _SMALL:
        sample = values[::_STEP]
        guess = _kth(sample, min(2 * (count // _STEP) + 8, len(sample)))
        above = values[values > guess]
        if len(above) >= count:
            return _kth(above, count)
        if len(above) + np.count_nonzero(values == guess) >= count:
            return guess
    return _kth(values, count)


def _kth(values: npt.NDArray[np.float32], count: int) -> np.float32:
    # Asked for two places, numpy takes its introselect. Asked for one it takes a vectorised quickselect, which needs 30
    # times as long where most numbers are equal and a few are larger, and that is what utilities are like.
    at = len(values) - count
    found: np.float32 = np.partition(values, [at, at])[at]
    return found
