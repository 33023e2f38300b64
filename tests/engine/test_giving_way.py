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
            entered.wait()
            leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    with giving_way():
        entered.wait()
    leave.set()
    thread.join()
    assert sys.getswitchinterval() == before


def test_only_lists_of_nobody_else_are_emptied() -> None:
    kept = list(range(100_000))
    alone = Numbers(range(100_000))
    lists: list[list[int]] = [kept, alone]
    del alone
    let_go(lists)
    assert not lists and len(kept) == 100_000
    assert Numbers.longest < 100_000, "in pieces"


class Numbers(list[int]):
    """Notes how much of it is freed at once."""

    longest = 0

    def __delitem__(self, which: object) -> None:
        before = len(self)
        super().__delitem__(which)  # type: ignore[arg-type]
        Numbers.longest = max(Numbers.longest, before - len(self))

    def __del__(self) -> None:
        Numbers.longest = max(Numbers.longest, len(self))
