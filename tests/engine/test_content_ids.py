import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.engine.content_ids import FIRST_CONTENT_ID, content_id, is_content_id

NET, OTHER_NET = bytes(range(16)), bytes(range(1, 17))

blocks = st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=32).map(lambda ids: np.array(ids, np.uint32))


@given(tokens=blocks)
def test_equal_content_has_an_equal_id(tokens: np.ndarray) -> None:
    view = np.concatenate([tokens, tokens])[32:]  # where the tokens lie has no say
    assert content_id(NET, 1, tokens) == content_id(bytes(bytearray(NET)), 1, view)


@given(tokens=blocks, place=st.integers(0, 31), by=st.integers(1, 2**32 - 1))
def test_any_other_token_makes_another_id(tokens: np.ndarray, place: int, by: int) -> None:
    other = tokens.copy()
    other[place] = (int(other[place]) + by) % 2**32
    assert content_id(NET, 1, other) != content_id(NET, 1, tokens)


@given(tokens=blocks)
def test_another_net_makes_another_id(tokens: np.ndarray) -> None:
    assert content_id(OTHER_NET, 1, tokens) != content_id(NET, 1, tokens)


def test_the_order_of_tokens_matters() -> None:
    tokens = np.arange(32, dtype=np.uint32)
    assert content_id(NET, 1, tokens[::-1]) != content_id(NET, 1, tokens)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), place=st.integers(0, 1023))
def test_level_two_covers_all_its_tokens(seed: int, place: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, 50_000, 1024, dtype=np.uint32)
    other = tokens.copy()
    other[place] += 1
    ids = {content_id(NET, 2, tokens), content_id(NET, 2, other)}
    ids |= {content_id(NET, 1, tokens[i : i + 32]) for i in range(0, 1024, 32)}
    assert len(ids) == 34


def test_no_two_of_many_ids_are_equal() -> None:
    tokens = np.random.default_rng(0).integers(0, 50_000, (20_000, 32), dtype=np.uint32)
    assert len({content_id(NET, 1, block) for block in tokens}) == 20_000


@given(tokens=blocks)
def test_ids_are_int63_above_any_vocabulary(tokens: np.ndarray) -> None:
    made = content_id(NET, 1, tokens)
    assert type(made) is int
    assert 2**32 <= FIRST_CONTENT_ID <= made < 2**63
    assert is_content_id(made)
    assert np.array([made], np.int64)[0] == made


def test_no_token_is_taken_for_a_content_id() -> None:
    assert not is_content_id(0) and not is_content_id(2**32 - 1) and not is_content_id(-1)


@pytest.mark.parametrize(("level", "size"), [(1, 31), (1, 33), (1, 1024), (2, 32), (2, 1023), (1, 0)])
def test_a_node_without_all_its_tokens_is_refused(level: int, size: int) -> None:
    with pytest.raises(AssertionError):
        content_id(NET, level, np.zeros(size, np.uint32))
