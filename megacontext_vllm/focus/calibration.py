"""What a utility is worth: the nats of the right answer that showing a block saves, as measured with a real reader.

Utilities order blocks and say no more. How much the reader gains by a block was tried block by block on questions of
the training split (``megacontext eval worth``), and isotonic regression makes a rising curve of it. It says what the
order cannot: below about 0.8 it makes no difference to a small reader which blocks fill the budget.
"""

import numpy as np

KNOTS = ((0.0372, -0.0843), (0.2407, -0.0544), (0.6236, -0.0442), (0.9787, 0.1678), (1.4739, 0.3647))
"""(utility, mean gain in nats), of the blend of lenses without an encoder; a gain counts within [-1, 1]."""


def expected_gain(utility: float) -> float:
    """Nats in [-1, 1] that showing a block of this ``utility`` is expected to save; less than nothing: to cost."""
    utilities, gains = zip(*KNOTS, strict=True)
    return float(np.interp(utility, utilities, gains))
