"""The price at which expansions just fit, against one plain pass over every node at every price."""

import numpy as np
import pytest

from megacontext_vllm.focus import pricing
from megacontext_vllm.focus.forest import Forest
from megacontext_vllm.focus.pricing import Chosen, best_fitting, rounded_down

Nodes = list[set[int]]


def plain(forest: Forest, utility: np.ndarray, price: float) -> Nodes:
    """What is chosen at a price: all worths upwards, then what nothing above hides. Sums in the order of the others."""
    k = forest.branching
    worth = {(0, n): max(float(utility[n]) - price, 0.0) for n in forest.inside[0]}
    for i, inside in enumerate(forest.inside[1:], 1):
        for n in inside:
            children = [worth[i - 1, c] for c in range(n * k, (n + 1) * k)]
            total = sum(children) if i == 1 else float(np.array([children]).sum(axis=1)[0])
            worth[i, n] = max(total - price, 0.0)
    chosen = forest.nothing()
    for i in reversed(range(len(forest.inside))):
        above = forest.inside[i + 1] if i + 1 < len(forest.inside) else ()
        for n in forest.inside[i]:
            if worth[i, n] > 0 and (n // k not in above or n // k in chosen[i + 1]):
                chosen[i].add(n)
    return chosen


def bisected(forest: Forest, utility: np.ndarray, steps: int) -> tuple[Nodes, Nodes | None]:
    low, high = 0.0, max(float(utility[forest.inside[0].start : forest.inside[0].stop].max(initial=0)), 0.0)
    fits, larger = forest.nothing(), plain(forest, utility, low)
    if sum(map(len, larger)) <= steps:
        return larger, None
    # As the choice is bisected, so are the prices; where the many blocks that are looked at first are enough, not from
    # 0. They are not in the cases below, or there are not so many.
    for _ in range(30):
        price = (low + high) / 2
        chosen = plain(forest, utility, price)
        if sum(map(len, chosen)) <= steps:
            fits, high = chosen, price
        else:
            larger, low = chosen, price
    return fits, larger


def best_of(forest: Forest, utility: np.ndarray) -> list[np.ndarray]:
    width = [forest.branching**i for i in range(len(forest.inside))]
    return [
        np.array([utility[n * width[i] : (n + 1) * width[i]].max() for n in inside], dtype=np.float32)
        for i, inside in enumerate(forest.inside)
    ][1:]


def utilities(kind: int, blocks: int, rng: np.random.Generator) -> np.ndarray:
    random = rng.random(blocks)
    clusters = np.repeat(rng.random(blocks // 8 + 1) < 0.2, 8)[:blocks]
    made = [
        random,
        np.full(blocks, 0.7),
        random * clusters,
        np.round(random * 8) / 7,
        rng.pareto(1.0, blocks),
        random * 2 - 1,
        random * 1e-30,
    ][kind]
    return made.astype(np.float32)


def nodes(forest: Forest, chosen: Chosen | None) -> Nodes | None:
    if chosen is None:
        return None
    found = chosen.nodes(forest)
    assert chosen.count == sum(map(len, found))
    return found


@pytest.mark.parametrize("kind", range(7))
def test_what_saves_looks_changes_nothing(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(kind)
    larger_ones = 0
    for case in range(40):
        branching, blocks = int(rng.choice([2, 4, 8])), int(rng.integers(1, 500))
        first = int(rng.integers(0, min(blocks, 6)))
        forest = Forest.over(blocks, first, int(rng.integers(first, blocks + 1)), branching)
        utility, steps = utilities(kind, blocks, rng), int(rng.integers(1, 40))
        expected = bisected(forest, utility, steps)
        monkeypatch.setattr(pricing, "_ENOUGH", blocks + 1)
        for few in (8, 64, 1000):
            monkeypatch.setattr(pricing, "_FEW", few)
            fits, larger = best_fitting(forest, utility, best_of(forest, utility), steps)
            assert (nodes(forest, fits), nodes(forest, larger)) == expected, f"case {case}, {few}"
        larger_ones += larger is not None
    assert larger_ones >= 10


@pytest.mark.parametrize("kind", range(7))
def test_the_first_look_finds_a_set_of_a_price(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the few best blocks looked at first, the prices are others, but each set is one that its price chooses."""
    rng = np.random.default_rng(kind)
    for _ in range(40):
        blocks, steps = int(rng.integers(100, 500)), int(rng.integers(1, 20))
        forest, utility = Forest.over(blocks, 1, blocks - 1, 4), utilities(kind, blocks, rng)
        monkeypatch.setattr(pricing, "_ENOUGH", int(rng.integers(1, 5)))
        monkeypatch.setattr(pricing, "_FEW", 50)
        fits, larger = best_fitting(forest, utility, best_of(forest, utility), steps)
        assert fits.count <= steps
        assert fits.nodes(forest) == plain(forest, utility, fits.price)
        if larger is not None:
            assert larger.count > steps and larger.price < fits.price
            assert larger.nodes(forest) == plain(forest, utility, larger.price)


def test_rounded_down() -> None:
    for price in (0.1, 0.5, 1.8749999981373549, 1 + 2**-30, 3.0, 1e-40):
        bound = rounded_down(price)
        assert float(bound) <= price < float(np.nextafter(bound, np.float32(np.inf)))
