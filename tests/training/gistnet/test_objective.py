"""One loss: where its gradient goes, and that ways to compute it faster or smaller change nothing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.nets.learned import LearnedGistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.losses import ContrastiveHead
from megacontext_vllm.training.gistnet.objective import Objective
from megacontext_vllm.training.gistnet.packing import pack
from megacontext_vllm.training.gistnet.recipe import Recipe
from megacontext_vllm.training.gistnet.start import make_net
from megacontext_vllm.training.gistnet.windows import Windows

PACKING = pack(512, [(1, 0), (0, 1), *((1, i) for i in range(2, 12))], [(256, 384), (384, 512)])


def recipe(**changed: Any) -> Recipe:
    small: dict[str, Any] = {"levels": 1, "windows": (512,), "heads": 2, "hidden": 32, "layers": 2, "dtype": "float32"}
    return Recipe(**(small | changed))


def wake(net: LearnedGistNet) -> LearnedGistNet:
    """Past the start, where the correction is zero and only its last layer has a gradient."""
    with torch.no_grad():
        net.project.weight.normal_(std=0.05, generator=torch.Generator().manual_seed(5))
    return net


@pytest.mark.parametrize("arch", ["pooling", "transformer"])
def test_gradient_flows_into_the_net_and_nowhere_else(
    family: str, arch: str, make_base: Callable[..., FrozenModel], documents: TokenStream
) -> None:
    base = make_base(family)
    chosen = recipe(arch=arch, contrastive=0.1, nll=0.5)
    net = wake(make_net(base, chosen))
    windows = Windows(documents, 512).draw(np.random.default_rng(0), 2)
    loss = Objective(base, chosen, ContrastiveHead(base.dim))(net, windows, PACKING)
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in base.model.parameters())


def test_a_window_costs_the_same_alone_and_in_a_batch(
    make_base: Callable[..., FrozenModel], documents: TokenStream
) -> None:
    base = make_base()
    net, windows = wake(make_net(base, recipe())), Windows(documents, 512).draw(np.random.default_rng(0), 3)
    objective = Objective(base, recipe(), None)
    alone = [float(objective(net, windows[i : i + 1], PACKING).detach()) for i in range(3)]
    together = float(objective(net, windows, PACKING).detach())
    assert together == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize("match_hidden", [False, True])
def test_checkpointing_changes_no_gradient(
    family: str, match_hidden: bool, make_base: Callable[..., FrozenModel], documents: TokenStream
) -> None:
    windows = Windows(documents, 512).draw(np.random.default_rng(0), 1)
    gradients = []
    for checkpointing in (False, True):
        base = make_base(family)
        net = wake(make_net(base, recipe()))
        if checkpointing:
            base.use_checkpointing()
        Objective(base, recipe(), None)(net, windows, PACKING, match_hidden=match_hidden).backward()
        gradients.append([parameter.grad for parameter in net.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_the_loss_is_that_of_a_working_context_read_alone(
    family: str, make_base: Callable[..., FrozenModel], documents: TokenStream
) -> None:
    base = make_base(family)
    net, windows = wake(make_net(base, recipe())), Windows(documents, 256).draw(np.random.default_rng(0), 1)
    ids = torch.from_numpy(windows)
    embeds, sink = base.embed(ids), base.embed(torch.tensor([[base.sink]]))
    with torch.no_grad():
        gists = net(embeds[0, :128].view(4, 32, -1), 1)
        seen = torch.cat([sink, gists[None], embeds[:, 128:]], dim=1)
        shown = base.logits(base.hidden(seen))[0, 4:-1].log_softmax(-1)
        whole = base.logits(base.hidden(torch.cat([sink, embeds], dim=1)))[0, 128:-1].log_softmax(-1)
    packing = pack(256, [(1, i) for i in range(4)], [(128, 256)])
    nll = Objective(base, recipe(kl=0.0, nll=1.0), None)(net, windows, packing)
    kl = Objective(base, recipe(kl=1.0, nll=0.0), None)(net, windows, packing)
    torch.testing.assert_close(nll.detach(), torch.nn.functional.nll_loss(shown, ids[0, 128:]), atol=1e-5, rtol=1e-4)
    expected = torch.nn.functional.kl_div(shown, whole, log_target=True, reduction="batchmean")
    torch.testing.assert_close(kl.detach(), expected, atol=1e-5, rtol=1e-4)


def test_autocast_is_close(make_base: Callable[..., FrozenModel], documents: TokenStream) -> None:
    base = make_base()
    windows = Windows(documents, 512).draw(np.random.default_rng(0), 1)
    net = wake(make_net(base, recipe()))
    plain, cast = (
        float(Objective(base, recipe(autocast=autocast), None)(net, windows, PACKING).detach())
        for autocast in (False, True)
    )
    assert cast == pytest.approx(plain, rel=0.02) and cast != plain
