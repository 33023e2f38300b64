"""What a block is worth to the reader: read by a real one, and what is made of it counted by hand."""

import numpy as np
import pytest

from megacontext_vllm.eval.worth import Tried, calibrate, ordered, ranges


def tried(utility: float, gain: float, sample: str = "a", history: str = "h") -> Tried:
    return Tried("needle", history, sample, 0, utility, True, False, gain)


def test_ranges_hold_each_block_once_and_bound_what_one_can_say() -> None:
    some = [tried(0.01, -3.0), tried(0.02, 0.5, history="i"), tried(0.05, 0.25), tried(1.5, 9.0)]
    first, second, last = ranges(some, (0.0, 0.05, 0.1, 1.0, np.inf))
    assert (first.blocks, first.gain) == (2, -0.25) and first.sure == (-1.0, 0.5)
    assert (second.low, second.blocks, second.gain) == (0.05, 1, 0.25)
    assert (last.low, last.utility, last.gain) == (1.0, 1.5, 1.0)
    assert sum(part.blocks for part in (first, second, last)) == len(some)


def test_order_is_asked_within_a_question_where_the_gains_differ() -> None:
    right = [tried(0.9, 1.0), tried(0.1, 0.0), tried(0.2, 0.05)]
    assert ordered(right) == (1.0, 2), "0 and 0.05 are about the same"
    assert ordered([*right, tried(0.95, -1.0)]) == (2 / 5, 5)
    assert ordered([tried(0.5, 1.0), tried(0.5, 0.0)]) == (0.5, 1)
    assert ordered([tried(0.5, 1.0, "a"), tried(0.1, 0.0, "b")])[1] == 0


def test_calibration_rises_whatever_was_measured() -> None:
    rng = np.random.default_rng(0)
    noisy = [tried(float(u), float(u**2 + rng.normal(0, 0.3))) for u in rng.uniform(0, 1, 300)]
    knots = calibrate(noisy)
    utilities, gains = zip(*knots, strict=True)
    assert list(utilities) == sorted(set(utilities)) and list(gains) == sorted(set(gains))
    for at in (0.25, 0.5, 0.75):
        assert np.interp(at, utilities, gains) == pytest.approx(at**2, abs=0.12)
    assert calibrate([tried(0.1, 0.2), tried(0.9, -0.2)]) == [(0.5, 0.0)], "against the order: one value for both"
    few = [tried(0.1, -0.5)] * 3 + [tried(0.5, 0.0)] * 30 + [tried(0.9, 0.5)] * 25
    assert calibrate(few) == [(pytest.approx(0.4636, abs=1e-4), pytest.approx(-0.0455, abs=1e-4)), (0.9, 0.5)]
