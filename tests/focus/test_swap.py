"""Whether a new Working Context is worth a prefill: counted by hand."""

import numpy as np
import pytest

from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.focus.swap import AT_ONCE, ENOUGH, first_difference, gain, pays
from megacontext_vllm.focus.working_context import WorkingContext

LENGTH = 100 * 32


def shown(scores: dict[int, float], length: int = LENGTH, window: int = 8 * 32) -> WorkingContext:
    """Head and tail of one block each, and room for six of ``scores``."""
    utility = np.zeros(length // 32, dtype=np.float32)
    utility[list(scores)] = list(scores.values())
    return allocate(length, window, utility, head=32, tail=32, gists=False)


def test_the_share_that_is_new() -> None:
    before = shown({10: 1.0, 20: 0.5, 30: 0.25})
    assert gain(before, before) == 0
    assert gain(before, shown({10: 1.0, 20: 0.5, 40: 0.5})) == 0.25
    assert gain(before, shown({40: 0.25, 41: 0.5})) == 1
    assert gain(before, shown({10: 0.75, 50: 0.25})) == pytest.approx(0.25)


def test_what_is_pinned_or_recent_or_worth_nothing_does_not_count() -> None:
    before = shown({10: 1.0})
    assert gain(before, shown({0: 1.0, 99: 1.0})) == 0, "head and tail"
    assert gain(before, shown({})) == 0
    # The spare budget of the one before went to its newest blocks: they are shown already.
    assert gain(before, shown({98: 1.0})) == 0


def test_what_was_said_since_is_in_sight() -> None:
    before = shown({10: 1.0})
    after = shown({10: 0.5, 102: 0.5}, length=LENGTH + 10 * 32)
    assert any(entry.reason == "lens" and entry.index == 102 for entry in after.entries)
    assert gain(before, after) == 0


def test_a_prefill_takes_no_more_than_its_share() -> None:
    # 100 tokens were said in the time in which 3,200 entries are prefilled; a twentieth of it is 160.
    assert AT_ONCE == 32
    assert pays(1.0, 160, 100, 0.05) and not pays(1.0, 161, 100, 0.05)
    assert pays(1.0, 3200, 100, 1.0) and not pays(1.0, 3201, 100, 1.0)
    assert not pays(1.0, 1, 0, 1.0), "nothing was said yet"


def test_too_little_gain_never_pays() -> None:
    assert pays(ENOUGH, 1, 1000, 0.05) and not pays(ENOUGH - 1e-6, 1, 1000, 0.05)


@pytest.mark.parametrize(
    ("before", "after", "first"),
    [([], [], 0), ([1], [], 0), ([1, 2, 3], [1, 2, 3], 3), ([1, 2, 3], [1, 2, 3, 4], 3), ([1, 2, 3], [1, 5, 3], 1)],
)
def test_the_first_difference(before: list[int], after: list[int], first: int) -> None:
    assert first_difference(before, after) == first == first_difference(after, before)
