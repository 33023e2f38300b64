"""The last place of a layer alone is what the whole layer has there, to the gradient."""

import pytest
import torch

from megacontext_vllm.nets.layer import Layer, LayerShape


@pytest.mark.parametrize("changed", [{}, {"attention_bias": True}, {"head_norms": True}, {"kv_heads": 4}], ids=str)
@pytest.mark.parametrize("places", [1, 2, 33])
def test_the_last_place_alone(changed: dict[str, int], places: int) -> None:
    torch.manual_seed(0)
    shape = {"width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ff": 48} | changed
    layer = Layer(LayerShape(**shape)).double()  # type: ignore[arg-type]
    x = torch.randn(5, places, 32, dtype=torch.float64, requires_grad=True)
    whole, alone = layer(x)[:, -1], layer.last(x)
    torch.testing.assert_close(alone, whole)
    along = torch.randn_like(whole)
    of_whole, of_alone = (torch.autograd.grad((out * along).sum(), x)[0] for out in (whole, alone))
    torch.testing.assert_close(of_alone, of_whole)
