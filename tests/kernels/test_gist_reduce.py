"""``gist_reduce`` and its gradients, on the host and as its Triton kernels, against the reference in float64."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megacontext_vllm.kernels import gist_reduce as module
from megacontext_vllm.kernels.gist_reduce import BLOCK, gist_reduce, gist_reduce_reference

ERROR = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 6e-4}  # the rounding of the result
Given = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


def make(nodes: int, heads: int, d: int, dtype: torch.dtype, *, by_rows: bool, seed: int = 0) -> Given:
    """Children, queries, bias and rows; by rows, the table has rows that no node names, and they are NaN."""
    generator = torch.Generator().manual_seed(seed)
    queries, bias = torch.randn(heads, d, generator=generator), torch.randn(heads, BLOCK, generator=generator)
    if not by_rows:
        return torch.randn(nodes, BLOCK, d, generator=generator).to(dtype), queries, bias, None
    table = torch.randn(3 * BLOCK, d, generator=generator).to(dtype)
    rows = torch.randint(0, BLOCK, (nodes, BLOCK), generator=generator) * 3  # repeated, in any order
    unused = torch.ones(len(table), dtype=torch.bool)
    unused[rows.flatten()] = False
    table[unused] = float("nan")
    return table, queries, bias, rows


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([1, 2, 5]), st.sampled_from([1, 3, 8]), st.sampled_from([1, 7, 24]))
def test_equals_the_reference(seed: int, nodes: int, heads: int, d: int) -> None:
    for by_rows in (False, True):
        arguments = make(nodes, heads, d, torch.float32, by_rows=by_rows, seed=seed)
        out = gist_reduce(*arguments)
        assert out.shape == (nodes, heads, d) and out.dtype == torch.float32
        assert distance(out, gist_reduce_reference(*arguments)) < 1e-5


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize(("nodes", "heads", "d"), [(1, 1, 1), (3, 9, 63), (2, 5, 130), (4, 17, 64), (1, 8, 576)])
def test_the_kernel_equals_the_reference(
    interpreted: Callable[[str], ModuleType], nodes: int, heads: int, d: int, dtype: torch.dtype, by_rows: bool
) -> None:
    kernels = interpreted("gist_reduce")
    arguments = make(nodes, heads, d, dtype, by_rows=by_rows)
    arguments = (arguments[0], arguments[1] / d**0.5, *arguments[2:])
    expected = gist_reduce_reference(*arguments)
    out, weights = kernels._forward(*arguments)
    assert out.dtype == dtype and not out.isnan().any()
    assert distance(out, expected) < ERROR[dtype]
    host, of_host = torch.ops.megacontext.gist_reduce(*arguments)
    torch.testing.assert_close(weights, of_host, rtol=1e-3, atol=1e-4)
    assert distance(host, expected) < 2 * ERROR[dtype]


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize(("nodes", "heads", "d"), [(1, 1, 1), (3, 9, 63), (2, 5, 130)])
def test_the_backward_kernel_equals_autograd_in_float64(
    interpreted: Callable[[str], ModuleType], nodes: int, heads: int, d: int, dtype: torch.dtype, by_rows: bool
) -> None:
    kernels = interpreted("gist_reduce")
    children, queries, bias, rows = make(nodes, heads, d, dtype, by_rows=by_rows)
    gathered = (children if rows is None else children[rows]).double().requires_grad_()
    grad = torch.randn(nodes, heads, d, generator=torch.Generator().manual_seed(1)).to(dtype)
    scores = torch.nn.functional.linear(gathered, queries.double()).transpose(1, 2) + bias.double()
    scores.retain_grad()
    weights = scores.softmax(dim=-1)
    torch.bmm(weights, gathered).backward(grad.double())
    found = kernels._backward(grad, weights.detach().float(), children, queries, rows)
    for out, expected in zip(found, (gathered.grad, scores.grad), strict=True):
        assert not out.isnan().any()
        # With one dimension the gradient of a score is a small difference of large numbers.
        assert (out.double() - expected).norm() <= ERROR[dtype] * expected.norm() + 1e-6


@pytest.mark.parametrize("by_rows", [False, True])
def test_gradients_by_finite_differences(by_rows: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (6, 3) if by_rows else (2, BLOCK, 3)
    rows = torch.randint(0, 6, (2, BLOCK), generator=generator) if by_rows else None
    shapes = (shape, (2, 3), (2, BLOCK))
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: gist_reduce(*tensors, rows), given)


@pytest.mark.parametrize("by_rows", [False, True])
def test_torch_finds_the_operators_well_behaved(by_rows: bool) -> None:
    """Fake kernels, autograd and tracing: what torch.compile and CUDA graphs rely on."""
    children, queries, bias, rows = make(2, 3, 8, torch.float32, by_rows=by_rows)
    children = children.nan_to_num()  # opcheck compares results, and no NaN equals another
    wanted = [tensor.requires_grad_() for tensor in (children, queries, bias)]
    torch.library.opcheck(module._gist_reduce, (*wanted, rows))
    out, weights = torch.ops.megacontext.gist_reduce(children, queries, bias, rows)
    grad = torch.ones_like(out)
    arguments = (grad, weights.detach(), children.detach(), queries.detach(), rows)
    torch.library.opcheck(module._gist_reduce_backward, arguments)


def test_children_with_gaps_between_them(interpreted: Callable[[str], ModuleType]) -> None:
    """A slice of a wider tensor: what is saved for the backward kernel is contiguous, as the kernel takes it to be."""
    children, queries, bias, _ = make(2, 3, 8, torch.float32, by_rows=False)
    wide = torch.full((2, BLOCK, 20), float("nan"))
    wide[..., 5:13] = children
    kernels = interpreted("gist_reduce")
    torch.testing.assert_close(
        kernels._forward(wide[..., 5:13], queries, bias, None)[0], gist_reduce(children, queries, bias)
    )
    sliced = wide[..., 5:13].detach().requires_grad_()
    gist_reduce(sliced, queries, bias).sum().backward()
    plain = children.clone().requires_grad_()
    gist_reduce(plain, queries, bias).sum().backward()
    torch.testing.assert_close(sliced.grad, plain.grad)


def test_a_frozen_table_gets_no_gradient() -> None:
    children, queries, bias, rows = make(2, 3, 8, torch.float32, by_rows=True)
    queries.requires_grad_()
    gist_reduce(children.nan_to_num(), queries, bias, rows).sum().backward()
    assert queries.grad is not None and queries.grad.abs().sum() > 0


def test_compiles_without_a_graph_break() -> None:
    children, queries, bias, _ = make(3, 2, 8, torch.float32, by_rows=False)
    compiled = torch.compile(gist_reduce, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(children, queries, bias), gist_reduce(children, queries, bias))


def test_a_query_of_zeros_is_the_mean_and_centring_can_wait() -> None:
    children, queries, bias, _ = make(3, 2, 6, torch.float32, by_rows=False)
    middle = torch.randn(6, generator=torch.Generator().manual_seed(1))
    mean = gist_reduce(children, torch.zeros(1, 6), torch.zeros(1, BLOCK))[:, 0]
    torch.testing.assert_close(mean, children.mean(dim=1))
    moved = gist_reduce(children - middle, queries, bias)
    torch.testing.assert_close(moved, gist_reduce(children, queries, bias) - middle)


@pytest.mark.parametrize("of_kernel", [False, True])
def test_strong_scores_pick_one_child(interpreted: Callable[[str], ModuleType], of_kernel: bool) -> None:
    forward = interpreted("gist_reduce")._forward if of_kernel else torch.ops.megacontext.gist_reduce
    children = torch.randn(2, BLOCK, 4)
    bias = torch.zeros(1, BLOCK)
    bias[0, 9] = 1e4
    torch.testing.assert_close(forward(children, torch.zeros(1, 4), bias, None)[0][:, 0], children[:, 9])
    assert torch.isfinite(forward(children * 1e4, torch.ones(1, 4), bias, None)[0]).all()


def test_no_nodes_and_wrong_shapes(interpreted: Callable[[str], ModuleType]) -> None:
    children, queries, bias, rows = make(2, 3, 8, torch.float32, by_rows=True)
    assert rows is not None
    assert gist_reduce(children, queries, bias, rows[:0]).shape == (0, 3, 8)
    assert interpreted("gist_reduce")._forward(children, queries, bias, rows[:0])[0].shape == (0, 3, 8)
    for wrong in (
        (children, queries, bias, None),
        (children, queries, bias, rows[:, :31]),
        (children, queries[:, :7], bias, rows),
        (children, queries, bias[:2], rows),
        (children, queries, bias, rows.int()),
    ):
        with pytest.raises(AssertionError):
            gist_reduce(*wrong)
