"""How other threads get to run beside work that takes long."""

import sys
import threading

import pytest

from megacontext_vllm.engine.giving_way import SECONDS, giving_way, let_go


def test_others_run_sooner_within_it_and_as_before_behind_it() -> None:
    before = sys.getswitchinterval()
    with giving_way():
        with giving_way():
            assert sys.getswitchinterval() == pytest.approx(SECONDS)
        assert sys.getswitchinterval() == pytest.approx(SECONDS), "the outer one is not done"
    assert sys.getswitchinterval() == before
    with pytest.raises(RuntimeError), giving_way():
        raise RuntimeError
    assert sys.getswitchinterval() == before


def test_threads_that_overlap_leave_it_as_it_was() -> None:
    before = sys.getswitchinterval()
    entered, leave = threading.Barrier(2), threading.Event()

    def work() -> None:
        with giving_way():
            entered.wait(10)
            leave.wait(10)

    thread = threading.Thread(target=work)
    thread.start()
    with giving_way():
        entered.wait(10)
    leave.set()
    thread.join(10)
    assert sys.getswitchinterval() == before


def test_a_list_is_emptied_in_pieces() -> None:
    numbers = Numbers(range(100_000))
    let_go(numbers)
    assert not numbers and 0 < Numbers.longest <= 10_000


class Numbers(list[int]):
    """Notes how much of it is let go of at once."""

    longest = 0

    def __delitem__(self, which: object) -> None:
        before = len(self)
        super().__delitem__(which)  # type: ignore[arg-type]
        Numbers.longest = max(Numbers.longest, before - len(self))
