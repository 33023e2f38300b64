"""What a utility is worth: a rising curve within bounds, as it was measured."""

import numpy as np
import pytest

from megacontext_vllm.focus.calibration import KNOTS, expected_gain


def test_more_utility_is_never_worth_less() -> None:
    gains = [expected_gain(utility) for utility in np.linspace(0, 2, 201)]
    assert gains == sorted(gains) and -1 <= gains[0] < 0 < gains[-1] <= 1


@pytest.mark.parametrize(("utility", "gain"), KNOTS)
def test_what_was_measured_is_met(utility: float, gain: float) -> None:
    assert expected_gain(utility) == pytest.approx(gain)
