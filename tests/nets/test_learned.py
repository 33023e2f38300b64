"""What holds for every GistNet with weights, whatever its architecture."""

from collections.abc import Callable

import pytest
import torch

from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.gistnet import BLOCK
from megacontext_vllm.nets.learned import LearnedGistNet
from megacontext_vllm.nets.pooling import PoolingGistNet
from megacontext_vllm.nets.transformer import TransformerGistNet

DIM = 24
TABLE = torch.randn(50, DIM, generator=torch.Generator().manual_seed(9)) * 0.3 + 0.5
SPACE = EmbeddingSpace.of(TABLE)
MAKERS: dict[str, Callable[[], LearnedGistNet]] = {
    "pooling": lambda: PoolingGistNet(DIM, heads=3, hidden=20, levels=2, scale=2.5, space=SPACE),
    "transformer": lambda: TransformerGistNet(DIM, 4, 2, 6, 40, layers=2, levels=2, head_norms=True, space=SPACE),
}


def children(nodes: int = 3, seed: int = 0) -> torch.Tensor:
    return TABLE[torch.randint(0, len(TABLE), (nodes, BLOCK), generator=torch.Generator().manual_seed(seed))]


@pytest.fixture(params=MAKERS)
def net(request: pytest.FixtureRequest) -> LearnedGistNet:
    """As after some training: nothing is zero any more."""
    torch.manual_seed(4)
    made = MAKERS[request.param]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


@pytest.mark.parametrize("kind", MAKERS)
def test_the_start_is_the_centred_mean_at_embedding_scale(kind: str) -> None:
    net, given = MAKERS[kind](), children()
    centred = given.mean(dim=1) - TABLE.mean(dim=0)
    expected = centred / centred.norm(dim=1, keepdim=True) * TABLE.norm(dim=1).median()
    torch.testing.assert_close(net(given, 1), expected * net.scale)
    # Gists have no mean to be taken away any more.
    gists = expected.repeat(11, 1)[:BLOCK][None]
    above = gists.mean(dim=1)
    torch.testing.assert_close(net(gists * net.scale, 2), above / above.norm() * SPACE.norm * net.scale)


def test_shapes_types_and_scale(net: LearnedGistNet) -> None:
    for level in (1, 2, 3, 7):
        gists = net(children(5).bfloat16(), level)
        assert gists.shape == (5, DIM) and gists.dtype == torch.float32
        torch.testing.assert_close(gists.norm(dim=1), torch.full((5,), SPACE.norm * net.scale))
    assert net(children(0), 1).shape == (0, DIM)


def test_levels_have_parameters_of_their_own_up_to_the_last(net: LearnedGistNet) -> None:
    gists = [net(children(), level) for level in (1, 2, 3, 4)]
    assert not torch.allclose(gists[0], gists[1], atol=1e-3)
    assert torch.equal(gists[1], gists[2]) and torch.equal(gists[2], gists[3])


def test_every_child_and_its_place_matter(net: LearnedGistNet) -> None:
    plain = children(1)
    gist = net(plain, 1)
    for child in range(BLOCK):
        changed = plain.clone()
        changed[0, child] = TABLE[(TABLE - plain[0, child]).norm(dim=1).argmax()]
        assert not torch.allclose(net(changed, 1), gist, atol=1e-5), child
    assert not torch.allclose(net(plain.flip(1), 1), gist, atol=1e-5)


@torch.inference_mode()
def test_batching_changes_no_gist(net: LearnedGistNet) -> None:
    given = children(67)
    together = net(given, 1)
    assert torch.equal(net(given, 1), together)  # in one size to the bit
    for size in (1, 2, 32, 66):  # in others as far as sums in another order go
        parts = torch.cat([net(part, 1) for part in given.split(size)])
        assert (parts - together).abs().max() < 1e-5 * SPACE.norm, size
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(given[order], 1), together[order], atol=1e-5, rtol=1e-5)


def test_one_bad_node_spoils_no_other(net: LearnedGistNet) -> None:
    given = children(4)
    good = net(given, 1)
    given[2] = float("nan")
    spoilt = net(given, 1)
    torch.testing.assert_close(spoilt[[0, 1, 3]], good[[0, 1, 3]])


def test_zeros_make_a_finite_gist(net: LearnedGistNet) -> None:
    for level in (1, 2):
        gists = net(torch.zeros(1, BLOCK, DIM), level)
        gists.sum().backward()
        assert torch.isfinite(gists).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_partial_blocks_and_other_widths_are_refused(net: LearnedGistNet) -> None:
    for wrong in (children()[:, :31], children()[0], children()[..., :-1]):
        with pytest.raises(AssertionError):
            net(wrong, 1)
    with pytest.raises(AssertionError):
        net(children(), 0)


def test_the_fingerprint_follows_the_weights_until_they_are_sealed(net: LearnedGistNet) -> None:
    first = net.fingerprint
    assert len(first) == 16 and first == net.fingerprint and net.trained is False
    with torch.no_grad():
        next(net.parameters()).add_(1.0)
    assert net.fingerprint != first
    net.seal()
    assert net.trained is True and len(net.fingerprint) == 16
