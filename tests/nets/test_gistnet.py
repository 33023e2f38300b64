import pytest
import torch

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.gistnet import BLOCK, RandomGistNet, load_gist_net

DIM = 24


def children(nodes: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(nodes, BLOCK, DIM, generator=torch.Generator().manual_seed(seed))


def test_equal_seeds_make_equal_nets() -> None:
    torch.manual_seed(1)
    first = RandomGistNet(DIM, 7)
    torch.manual_seed(2)  # the global generator has no say
    second = RandomGistNet(DIM, 7)
    assert first.fingerprint == second.fingerprint and len(first.fingerprint) == 16
    assert torch.equal(first(children(), 2), second(children(), 2))


def test_other_seeds_and_widths_are_other_nets() -> None:
    net, other = RandomGistNet(DIM, 7), RandomGistNet(DIM, 8)
    assert not torch.allclose(net(children(), 1), other(children(), 1))
    assert len({net.fingerprint, other.fingerprint, RandomGistNet(DIM + 1, 7).fingerprint}) == 3


def test_every_child_matters() -> None:
    net = RandomGistNet(DIM, 0)
    plain = children(1)
    gist = net(plain, 1)
    for child in range(BLOCK):
        changed = plain.clone()
        changed[0, child] += 1.0
        assert not torch.allclose(net(changed, 1), gist, atol=1e-6), child


def test_places_matter() -> None:
    net = RandomGistNet(DIM, 0)
    plain = children(1)
    gist = net(plain, 1)
    for child in range(BLOCK - 1):
        swapped = plain.clone()
        swapped[0, [child, child + 1]] = plain[0, [child + 1, child]]
        assert not torch.allclose(net(swapped, 1), gist, atol=1e-6), child


def test_levels_matter() -> None:
    net = RandomGistNet(DIM, 0)
    gists = [net(children(1), level) for level in (1, 2, 3, 4)]
    for i, left in enumerate(gists):
        for right in gists[i + 1 :]:
            assert not torch.allclose(left, right, atol=1e-6)


def test_nodes_do_not_mix() -> None:
    net = RandomGistNet(DIM, 0)
    together = net(children(5), 1)
    assert together.shape == (5, DIM) and together.dtype == torch.float32
    for node in range(5):
        torch.testing.assert_close(net(children(5)[node : node + 1], 1)[0], together[node])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_gists_are_at_the_scale_of_their_children(scale: float) -> None:
    net = RandomGistNet(DIM, 3)
    given = children() * scale
    torch.testing.assert_close(net(given, 1).norm(dim=-1), given.norm(dim=-1).mean(dim=-1))
    # ... and stay there up the levels.
    up = net(net(children(BLOCK) * scale, 1).unsqueeze(0), 2)
    assert 0.2 * scale * DIM**0.5 < float(up.norm()) < 5 * scale * DIM**0.5


def test_all_zero_children_make_a_finite_gist() -> None:
    assert torch.equal(RandomGistNet(DIM, 0)(torch.zeros(1, BLOCK, DIM), 1), torch.zeros(1, DIM))


def test_half_precision_children_give_float32_gists() -> None:
    net = RandomGistNet(DIM, 0)
    half = children().bfloat16()
    assert torch.equal(net(half, 1), net(half.float(), 1))


def test_a_partial_block_is_refused() -> None:
    for wrong in (children()[:, :31], children()[0]):
        with pytest.raises(AssertionError):
            RandomGistNet(DIM, 0)(wrong, 1)


def test_loading_by_name() -> None:
    net = load_gist_net("random:12", DIM)
    assert net.fingerprint == RandomGistNet(DIM, 12).fingerprint
    assert net.trained is False


@pytest.mark.parametrize("name", ["", "random", "random:", "random:x", "random:-1", "random:1.5", "mean", "/no/such"])
def test_unknown_names_are_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match="gist_net") as refused:
        load_gist_net(name, DIM)
    assert repr(name) in str(refused.value)
