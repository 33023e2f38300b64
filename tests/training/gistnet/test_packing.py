"""A packed sequence is exactly the Working Contexts that it stands for, read one by one."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.nets.gistnet import BLOCK
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.packing import Packing, draw_packing, pack


def drawn(seed: int, window: int, levels: int = 2, raw_share: float = 0.4) -> Packing:
    rng = np.random.default_rng(seed)
    return draw_packing(rng, window, (32, 64, 192), levels=levels, raw_share=raw_share, coarse_share=0.7)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([64, 96, 512, 1024, 1536, 2048]))
def test_every_place_sees_a_working_context(seed: int, window: int) -> None:
    packing = drawn(seed, window)
    covers = {0: (0, 0)}  # tokens [start, stop) under each row
    covers |= {1 + token: (token, token + 1) for token in range(window)}
    for place, (level, index) in enumerate(packing.nodes):
        assert level >= 1 and (index + 1) * BLOCK**level <= window
        covers[1 + window + place] = (index * BLOCK**level, (index + 1) * BLOCK**level)
    assert len(packing.places)
    chosen = np.random.default_rng(seed).choice(len(packing.places), 8)
    for place, target, tail in zip(packing.places[chosen], packing.targets[chosen], packing.tails[chosen], strict=True):
        seen = np.flatnonzero(packing.visible[place])
        assert seen[-1] == place and seen[0] == 0
        # Contiguity: what is seen tiles [0, target), in order, each at the next position.
        spans = [covers[int(row)] for row in packing.rows[seen]]
        assert spans[0] == (0, 0) and spans[-1][1] == target < window
        assert all(left[1] == right[0] for left, right in pairwise(spans))
        assert packing.positions[seen].tolist() == list(range(len(seen)))
        is_gist = packing.rows[seen] > window
        assert is_gist.any() and is_gist[::-1].argmax() == tail


def test_a_mix_of_everything_is_drawn() -> None:
    packings = [drawn(seed, 2048) for seed in range(60)]
    levels = {level for packing in packings for level, _ in packing.nodes}
    raw = [((packing.rows >= 1) & (packing.rows <= 2048)).sum() for packing in packings]
    assert levels == {1, 2} and len(set(raw)) > 10
    assert max(len(packing.nodes) for packing in packings) >= 28
    assert {0, 31, 128, 191} <= set(np.concatenate([packing.tails for packing in packings]).tolist())


def test_one_level_means_no_other() -> None:
    assert {level for seed in range(20) for level, _ in drawn(seed, 2048, levels=1).nodes} == {1}


def test_the_hard_layout() -> None:
    packing = pack(28 * 32 + 192, [(1, i) for i in range(28)], [(28 * 32, 28 * 32 + 192)])
    assert len(packing.rows) == 1 + 28 + 192
    assert packing.visible.all(axis=1).tolist() == [False] * 220 + [True]
    assert packing.tails.tolist() == list(range(192)) and packing.targets.tolist() == list(range(896, 896 + 192))


def test_packed_and_separate_hidden_states_are_equal(family: str, make_base: Callable[..., FrozenModel]) -> None:
    base = make_base(family)
    window = 512
    prefix = [(1, 0), (0, 1), (1, 2), (1, 3), (0, 4), (1, 5), (1, 6), (1, 7)]
    segments = [(96, 160), (160, 256), (256, 512)]
    packing = pack(window, prefix, segments)
    generator = torch.Generator().manual_seed(1)
    embeds = base.embed(torch.randint(0, 96, (window,), generator=generator))
    gists = torch.randn(len(packing.nodes), base.dim, generator=generator) * embeds.std()
    table = torch.cat([base.embed(torch.tensor([base.sink])), embeds, gists])
    positions, visible = torch.from_numpy(packing.positions), torch.from_numpy(packing.visible)
    packed = base.hidden(table[packing.rows][None], positions, visible)[0]
    for start, stop in segments:
        rows = [0]
        for level, index in prefix[: start // BLOCK]:
            rows += [1 + window + packing.nodes.index((1, index))] if level else range(1 + index * 32, 33 + index * 32)
        rows += range(1 + start, 1 + stop)
        alone = base.hidden(table[rows][None])[0]
        of_segment = np.flatnonzero(np.isin(packing.targets, np.arange(start + 1, stop + 1)))
        places = [p for p in packing.places[of_segment] if packing.visible[p].sum() > start // BLOCK]
        assert len(places) >= stop - start - 1
        for place in places:
            seen = np.flatnonzero(packing.visible[place])
            if packing.rows[seen].tolist() == rows[: len(seen)]:
                torch.testing.assert_close(packed[place], alone[len(seen) - 1], atol=2e-5, rtol=1e-4)
        last = max(place for place in places if packing.rows[place] == stop or packing.rows[place] == stop - 1)
        assert packing.rows[np.flatnonzero(packing.visible[last])].tolist() == rows[: packing.visible[last].sum()]
