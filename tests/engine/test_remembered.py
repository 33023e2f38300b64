"""What is remembered for whom, and what goes first."""

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from megacontext_vllm.engine.remembered import Remembered

KEYS = st.integers(0, 4)
STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), KEYS, st.integers(0, 60), st.one_of(st.none(), KEYS), st.booleans()), max_size=40
)


@given(STEPS)
def test_it_is_the_plain_thing(steps: list[tuple[str, int, int, int | None, bool]]) -> None:
    """Against a dict that is summed up anew each time."""
    known = Remembered[int, int](100, lambda value: value)
    plain: OrderedDict[tuple[str, int], int] = OrderedDict()
    for namespace, key, value, instead, put in steps:
        if put:
            known.put(namespace, key, value, instead)
            plain.pop((namespace, key), None)
            plain.pop((namespace, -1 if instead is None else instead), None)
            plain[namespace, key] = value
            while len(plain) > 1 and sum(plain.values()) > 100:
                plain.popitem(last=False)
        else:
            assert known.use(namespace, key) == plain.get((namespace, key))
            if (namespace, key) in plain:
                plain.move_to_end((namespace, key))
        assert len(known) == len(plain)
        for name in "abc":
            assert known.of(name) == [(key, value) for (of, key), value in plain.items() if of == name]


def test_what_grows_meanwhile_counts_as_it_came() -> None:
    """As Python's texts do; else the bound would grow with each that goes."""
    known = Remembered[int, list[int]](100, len)
    for key in range(50):
        value = [0] * 40
        known.put(None, key, value)
        value += [0] * 60
    assert len(known) == 2
