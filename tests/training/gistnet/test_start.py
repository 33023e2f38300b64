from collections.abc import Callable

import pytest
import torch

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.transformer import TransformerGistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.recipe import Recipe
from megacontext_vllm.training.gistnet.start import make_net


def test_copied_layers_compute_what_the_base_computes(family: str, make_base: Callable[..., FrozenModel]) -> None:
    base = make_base(family)
    net = make_net(base, Recipe(arch="transformer", layers=2))
    assert isinstance(net, TransformerGistNet)
    x = base.embed(torch.randint(0, 96, (3, 33), generator=torch.Generator().manual_seed(0)))
    ours = x
    for layer in net.layers:
        ours = layer(ours)
    theirs = base.hidden_at(1, x)
    if family == "gpt2":
        assert not torch.allclose(ours, theirs, atol=1e-2)  # from scratch: another kind of layer
    else:
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("arch", ["pooling", "transformer"])
def test_the_start_is_the_centred_mean(family: str, arch: str, make_base: Callable[..., FrozenModel]) -> None:
    base = make_base(family)
    net = make_net(base, Recipe(arch=arch, layers=1, heads=2, hidden=16, scale=3.0))
    table = base.embed(torch.arange(96))
    children = table[torch.randint(0, 96, (5, 32), generator=torch.Generator().manual_seed(0))]
    centred = children.mean(dim=1) - table.mean(dim=0)
    expected = centred / centred.norm(dim=1, keepdim=True) * table.norm(dim=1).median() * 3
    torch.testing.assert_close(net(children, 1), expected, atol=1e-5, rtol=1e-4)


def test_one_seed_makes_one_net(make_base: Callable[..., FrozenModel]) -> None:
    base = make_base()
    nets = [make_net(base, Recipe(seed=seed, heads=2, hidden=16)) for seed in (3, 3, 4)]
    assert nets[0].fingerprint == nets[1].fingerprint != nets[2].fingerprint


def test_more_layers_than_there_are(make_base: Callable[..., FrozenModel]) -> None:
    with pytest.raises(ConfigError, match="--layers 9"):
        make_net(make_base(), Recipe(arch="transformer", layers=9))
