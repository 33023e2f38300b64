"""Makers and controls by hand."""

import torch

from megacontext_vllm.eval.gists.makers import EveryNth, LastOnly, MeanGists, NetGists, standard_makers
from megacontext_vllm.nets.gistnet import RandomGistNet

EMBEDDING = torch.randn(5000, 16, generator=torch.Generator().manual_seed(0))


def tokens(nodes: int, level: int) -> torch.Tensor:
    return torch.randint(0, 5000, (nodes, 32**level), generator=torch.Generator().manual_seed(level))


def test_every_32nd_token_is_the_one_in_the_middle() -> None:
    maker = EveryNth(EMBEDDING)
    assert torch.equal(maker.gists(torch.arange(64).view(2, 32), 1), EMBEDDING[[16, 48]])
    assert torch.equal(maker.gists(torch.arange(2048).view(2, 1024), 2), EMBEDDING[[512, 1536]])


def test_the_mean() -> None:
    ids = tokens(3, 2)
    torch.testing.assert_close(MeanGists(EMBEDDING).gists(ids, 2), EMBEDDING[ids].mean(dim=1))


def test_a_net_makes_levels_from_the_bottom_up() -> None:
    net = RandomGistNet(16, seed=3)
    ids = tokens(2, 2)
    for node, gist in zip(ids, NetGists("n", net, EMBEDDING).gists(ids, 2), strict=True):
        below = torch.cat([net(EMBEDDING[block][None], 1) for block in node.view(32, 32)])
        torch.testing.assert_close(gist, net(below[None], 2)[0])
    first = NetGists("n", net, EMBEDDING).gists(ids.view(64, 32), 1)
    torch.testing.assert_close(first, net(EMBEDDING[ids.view(64, 32)], 1))


def test_what_is_measured() -> None:
    counts = torch.ones(5000, dtype=torch.int64)
    nets = [("one", RandomGistNet(16, 1)), ("two", RandomGistNet(16, 2))]
    makers = standard_makers(EMBEDDING, counts, nets)
    names = [maker.name for maker in makers]
    assert names[-4:] == ["one", "one, last gist only", "two", "two, last gist only"]
    assert [maker.name for maker in makers if maker.last_only] == names[-3::2]
    assert "every 32nd token" in names and len(set(names)) == len(names)
    for maker in makers:
        made = maker.gists(tokens(2, 1), 1)
        assert made.shape == (2, 16) and made.dtype == torch.float32
    assert any(isinstance(maker, LastOnly) for maker in standard_makers(EMBEDDING, counts))
