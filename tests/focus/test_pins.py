"""What is pinned fits whatever is asked for, and is what a person would want to be shown."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.focus.allocator import allocate
from megacontext_vllm.focus.pins import pins
from megacontext_vllm.focus.query import Query
from megacontext_vllm.focus.working_context import Kind

LENGTH = 20_000


def query(start: int, end: int, **more: object) -> Query:
    return Query(np.arange(3), np.ones(3, dtype=np.float32), start, end, **more)  # type: ignore[arg-type]


def pinned(asked: Query, window: int = 1024, answer: int = 0, anywhere: bool = False) -> tuple[int, int, set[int]]:
    """Tokens of head and tail, and the blocks between."""
    found = pins(LENGTH, asked, window, 64, 128, answer=answer, anywhere=anywhere, gap_cost=5)
    assert all(start % 32 == 0 and end == start + 32 for start, end in found.between)
    return found.head, found.tail, {start // 32 for start, _ in found.between}


@st.composite
def spans(draw: st.DrawFn, low: int = 0, high: int = LENGTH) -> tuple[int, int]:
    start = draw(st.integers(low, high))
    return start, draw(st.integers(start, min(high, start + draw(st.sampled_from([3, 70, 2000, LENGTH])))))


@given(
    asking=spans(),
    result=st.none() | spans(100),
    more=st.lists(spans(), max_size=4),
    instructions=st.integers(0, LENGTH) | st.integers(0, 300),
    window=st.integers(128, 400) | st.integers(128, 9000),
    answer=st.sampled_from([0, 0, 40, 900, 15_000]),
    gap_cost=st.integers(0, 12),
    anywhere=st.booleans(),
    data=st.data(),
)
def test_it_always_fits(asking, result, more, instructions, window, answer, gap_cost, anywhere, data) -> None:
    step = (0, 0)
    if result is not None:
        step = data.draw(spans(0, result[0]))
    asked = query(
        *asking,
        document=data.draw(st.integers(0, LENGTH)),
        instructions=instructions,
        result=result or (0, 0),
        step=step,
        beside=tuple(more),
    )
    found = pins(LENGTH, asked, window, 64, 128, answer=answer, anywhere=anywhere, gap_cost=gap_cost)
    utility = np.linspace(0, 1, LENGTH // 32, dtype=np.float32)
    context = allocate(
        LENGTH, window, utility, head=found.head, tail=found.tail, pinned=found.between, gists=False, gap_cost=gap_cost
    )
    assert context.cost <= window
    raw = {entry.index for entry in context.entries if entry.kind is Kind.RAW}
    assert raw >= {start // 32 for start, _ in found.between}


def test_instructions_are_pinned_to_a_quarter() -> None:
    assert pinned(query(19_900, 19_990))[0] == 64
    assert pinned(query(19_900, 19_990, instructions=30))[0] == 64
    assert pinned(query(19_900, 19_990, instructions=200))[0] == 200
    assert pinned(query(19_900, 19_990, instructions=5000))[0] == 256


def test_a_question_before_the_text_is_pinned_where_it_stands() -> None:
    _, _, between = pinned(query(19_900, 19_990, beside=((3201, 3217),)))
    assert between == {100}
    assert pinned(query(19_900, 19_990, beside=((10, 30),)))[2] == set(), "what the head shows is not pinned twice"


def test_behind_a_short_result_all_since_its_call_is_shown() -> None:
    asked = query(300, 330, result=(19_800, 19_980), step=(19_760, 19_795), beside=((296, 334), (19_756, 19_800)))
    _, tail, between = pinned(asked)
    assert tail == LENGTH - 19_760 and between == {9, 10}


def test_behind_a_long_result_the_question_and_the_call_are_shown() -> None:
    asked = query(300, 330, result=(420, 19_990), step=(380, 410), beside=((296, 334), (376, 420)), document=19_570)
    assert pinned(asked) == (64, 128, {9, 10, 11, 12, 13}), "and its end, where nothing was found"
    assert pinned(asked, anywhere=True) == (64, 10, {9, 10, 11, 12, 13})


def test_while_it_is_answered_the_question_is_shown_not_what_stands_behind_it() -> None:
    asked = query(300, 330, result=(420, 18_990), step=(380, 410), beside=((296, 334), (376, 420)))
    _, tail, between = pinned(asked, answer=1000)
    assert tail == 256 and between == {9, 10} | {593} | {11, 12, 13}, "with whose turn it is, in front of the answer"
    plain = query(18_900, 18_995)
    assert pinned(plain, answer=1000)[2] == {590, 591, 592, 593}
