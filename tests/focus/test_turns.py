"""What is shown where several things are looked for."""

import numpy as np

from megacontext_vllm.focus.turns import best_of, in_turn


def values(*given: float) -> np.ndarray:
    return np.array(given, dtype=np.float32)


def test_a_vague_question_leaves_the_best_places_of_a_clear_one_their_turn() -> None:
    vague, clear = values(0.9, 1, 0.95, 0.97, 0, 0), values(0, 0, 0, 0, 2, 0.4)
    both = in_turn([vague, clear])
    assert np.argsort(-both).tolist()[:4] == [1, 4, 3, 5], "the first one's first"
    assert np.sort(both).tolist() == np.sort(best_of([vague, clear])).tolist(), "in another order only"
    assert np.argsort(-best_of([vague, clear])).tolist()[-1] == 5


def test_what_nothing_finds_is_worth_nothing() -> None:
    assert in_turn([values(0, 1, 0), values(0, 0, 0)]).tolist() == [0, 1, 0]
    assert in_turn([values(0, 0), values(0, 0)]).tolist() == [0, 0]
    assert in_turn([values(), values()]).tolist() == []


def test_the_best_places_of_each_are_worth_the_same() -> None:
    assert best_of([values(1, 0.5, 0), values(0, 0, 4)]).tolist() == [4, 2, 4]
