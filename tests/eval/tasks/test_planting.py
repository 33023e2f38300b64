"""Facts in filler: where they lie, and that what is around them stays aligned."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.planting import HEAD, TAIL, NoPlaceError, Planting, Wish, plant


def untouched(history: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """The blocks of a history, uint32 ``[n, 32]``, that no fact reaches into."""
    touched = np.zeros(len(history) // 32, dtype=bool)
    for start, stop in spans:
        touched[start // 32 : (stop - 1) // 32 + 1] = True
    return history[: len(touched) * 32].reshape(-1, 32)[~touched]


FACTS = st.lists(st.tuples(st.integers(1, 90), st.floats(0, 1)), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(facts=FACTS, length=st.integers(6000, 60_000), beginning=st.integers(0, 10_000))
def test_facts_lie_where_they_may_and_leave_aligned_blocks(
    filler: Filler,
    is_aligned: Callable[[np.ndarray], bool],
    facts: list[tuple[int, float]],
    length: int,
    beginning: int,
) -> None:
    marker = 60_000  # beyond the vocabulary
    wishes = [Wish(np.full(size, marker + i, dtype=np.uint32), depth) for i, (size, depth) in enumerate(facts)]
    start = int(filler.beginnings[beginning % len(filler.beginnings)])
    history, spans = plant(filler, start, wishes, length)
    assert history.dtype == np.uint32 and len(history) == length
    assert int((history >= marker).sum()) == sum(len(wish.tokens) for wish in wishes)
    for wish, (begin, end) in zip(wishes, spans, strict=True):
        assert history[begin:end].tolist() == wish.tokens.tolist()
        assert begin >= HEAD and end <= length - TAIL
    assert all(map(is_aligned, untouched(history, spans)))
    by_depth = sorted(range(len(wishes)), key=lambda i: wishes[i].depth)
    assert by_depth == sorted(by_depth, key=lambda i: spans[i])


def test_a_fact_stands_close_to_its_depth(filler: Filler) -> None:
    for seed, depth in enumerate(np.linspace(0, 1, 21).tolist()):
        wish = Wish(np.full(20, 60_000, dtype=np.uint32), depth)
        _, [(start, _)] = plant(filler, int(filler.beginnings[seed]), [wish], 65_536)
        assert abs(start - (HEAD + depth * (65_536 - HEAD - TAIL - 20))) <= 300


def test_a_fact_stands_between_whole_sentences(filler: Filler, chat: ChatFormat) -> None:
    fact = " The secret code of Clara Ashby is 58213."
    for start in filler.beginnings[::10].tolist():
        history, [(begin, end)] = plant(filler, start, [Wish(chat.encode(fact), 0.5)], 8192)
        assert chat.decode(history[begin:end]) == fact
        assert chat.decode(history[begin - 4 : begin]).rstrip("\"')]").endswith((".", "!", "?"))
        behind = chat.decode(history[end : end + 4])
        assert behind[0].isspace() and not behind.strip()[0].islower()


def test_little_filler_is_left_out(filler: Filler) -> None:
    wishes = [Wish(np.full(17, 60_000, dtype=np.uint32), i / 32) for i in range(32)]
    start = int(filler.beginnings[3])
    history, _ = plant(filler, start, wishes, 65_536)
    last = history[-64:]
    offset = next(i for i in range(start, start + 200_000, 1) if np.array_equal(filler.read(i, i + len(last)), last))
    assert offset + len(last) - start < 65_536 + 32 * 400


def test_histories_that_cannot_be_are_refused(filler: Filler) -> None:
    wish = Wish(np.full(20, 60_000, dtype=np.uint32), 0.5)
    with pytest.raises(EvaluationError, match="longer histories"):
        plant(filler, 0, [wish], HEAD + TAIL + 30)
    with pytest.raises(EvaluationError, match="shorter histories"):
        plant(filler, 0, [wish], len(filler) + 1000)


def test_no_sentence_no_place() -> None:
    filler = Filler(np.arange(6400, dtype=np.uint32), np.array([0]), np.array([0]), "")
    with pytest.raises(NoPlaceError):
        Planting(filler, 0).place(np.zeros(32, dtype=np.uint32), 100, 200, 300)
