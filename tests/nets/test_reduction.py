import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.nets.reduction import reduce


def naive(children: torch.Tensor, queries: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """float64 ``[n, H, d]``, one number after the other."""
    children, queries, bias = children.double(), queries.double(), bias.double()
    out = torch.zeros(len(children), len(queries), children.shape[2], dtype=torch.float64)
    for node, of_node in enumerate(children):
        for head, query in enumerate(queries):
            weights = [torch.exp(child @ query + bias[head, place]) for place, child in enumerate(of_node)]
            for weight, child in zip(weights, of_node, strict=True):
                out[node, head] += weight / sum(weights) * child
    return out


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 8]), st.sampled_from([1, 7, 24]))
def test_equals_the_naive_loop(seed: int, nodes: int, heads: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    children = torch.randn(nodes, 32, dim, generator=generator)
    queries, bias = torch.randn(heads, dim, generator=generator), torch.randn(heads, 32, generator=generator)
    out, expected = reduce(children, queries, bias), naive(children, queries, bias)
    assert out.shape == (nodes, heads, dim) and out.dtype == torch.float32
    assert (out - expected).norm() / expected.norm() < 1e-5


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 32, 3), (2, 3), (2, 32))]
    assert torch.autograd.gradcheck(reduce, [tensor.requires_grad_() for tensor in given])


def test_a_query_of_zeros_is_the_mean_and_centring_can_wait() -> None:
    generator = torch.Generator().manual_seed(0)
    children, middle = torch.randn(3, 32, 6, generator=generator), torch.randn(6, generator=generator)
    queries, bias = torch.randn(2, 6, generator=generator), torch.randn(2, 32, generator=generator)
    mean = reduce(children, torch.zeros(1, 6), torch.zeros(1, 32))[:, 0]
    torch.testing.assert_close(mean, children.mean(dim=1))
    torch.testing.assert_close(reduce(children - middle, queries, bias), reduce(children, queries, bias) - middle)


def test_strong_scores_pick_one_child() -> None:
    children = torch.randn(2, 32, 4)
    bias = torch.zeros(1, 32)
    bias[0, 9] = 1e4
    torch.testing.assert_close(reduce(children, torch.zeros(1, 4), bias)[:, 0], children[:, 9])
    assert torch.isfinite(reduce(children * 1e4, torch.ones(1, 4), bias)).all()
