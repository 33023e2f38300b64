"""The same kernels, compiled and on the device: against the references, in CUDA graphs, with large and odd sizes."""

import pytest
import torch
from megacontext_vllm.kernels.gist_reduce import gist_reduce, gist_reduce_reference
from megacontext_vllm.kernels.lens_scan import (
    lens_scan,
    lens_scan_reference,
    lexical_scan,
    lexical_scan_reference,
)
from megacontext_vllm.kernels.span_gather import (
    assemble_spans,
    assemble_spans_reference,
    span_gather_,
    span_gather_reference,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# A float32 product on a GPU adds up thousands of values one after the other; one of rounded values (tf32) would be off
# by 1e-3.
ERROR = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 6e-4}
SIZES = [1, 63, 576, 2048, 4096, 5120, 8192]


def overlay_batch(d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(d)
    embeddings, pages = torch.randn(70, d, generator=generator), torch.randn(9, 32, d, generator=generator)
    rows = torch.randperm(9 * 32, generator=generator)[:100].int()
    table = torch.where(torch.rand(100, generator=generator) < 0.4, -1, rows).int()
    mapping = torch.randperm(100, generator=generator)[:65]
    mapping[::7] = -1
    return embeddings.to(dtype), pages.to(dtype), table, mapping


@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("d", SIZES)
def test_span_gather(d: int, dtype: torch.dtype) -> None:
    given = overlay_batch(d, dtype)
    expected = span_gather_reference(*given)
    on_device = [tensor.cuda() for tensor in given]
    span_gather_(*on_device)
    assert torch.equal(on_device[0].cpu(), expected)
    plan = torch.randint(-9 * 32, 70, (41,), generator=torch.Generator().manual_seed(1))
    out = assemble_spans(given[0].cuda(), given[1].cuda(), plan.cuda())
    assert torch.equal(out.cpu(), assemble_spans_reference(given[0], given[1], plan))


def test_span_gather_in_a_graph() -> None:
    """Captured once, replayed with other gists, and with none."""
    embeddings, pages, table, mapping = (tensor.cuda() for tensor in overlay_batch(576, torch.bfloat16))
    source, slots = embeddings.clone(), table.clone()
    for _ in range(2):  # compiles
        span_gather_(embeddings, pages, table, mapping)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        embeddings.copy_(source)
        span_gather_(embeddings, pages, table, mapping)
    for new in (slots, slots.flip(0), torch.full_like(slots, -1)):
        table.copy_(new)
        graph.replay()
        expected = span_gather_reference(source.cpu(), pages.cpu(), new.cpu(), mapping.cpu())
        assert torch.equal(embeddings.cpu(), expected)


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("dtype", ERROR, ids=str)
@pytest.mark.parametrize("d", SIZES)
def test_gist_reduce_and_its_gradients(d: int, dtype: torch.dtype, by_rows: bool) -> None:
    generator = torch.Generator().manual_seed(d)
    heads, nodes = 9, 5
    children = torch.randn(*((200, d) if by_rows else (nodes, 32, d)), generator=generator).to(dtype)
    queries, bias = torch.randn(heads, d, generator=generator) / d**0.5, torch.randn(heads, 32, generator=generator)
    rows = torch.randint(200, (nodes, 32), generator=generator) if by_rows else None
    grad = torch.randn(nodes, heads, d, generator=generator).to(dtype)
    wanted = [tensor.cuda().requires_grad_() for tensor in (children, queries, bias)]
    out = gist_reduce(*wanted, rows.cuda() if rows is not None else None)
    out.backward(grad.cuda())
    exact = [tensor.double().requires_grad_() for tensor in (children, queries, bias)]
    expected = gist_reduce_reference(*exact, rows).detach()
    gist_reduce(*exact, rows).backward(grad.double())
    assert float((out.detach().cpu().double() - expected).norm() / expected.norm()) < ERROR[dtype]
    for found, right in zip(wanted, exact, strict=True):
        assert found.grad is not None and right.grad is not None
        assert (found.grad.cpu().double() - right.grad).norm() <= 2 * ERROR[dtype] * right.grad.norm() + 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize(("nodes", "k", "keep", "group"), [(1, 1, 1, 16), (5000, 128, 16, 256), (333, 100, 4, 256)])
def test_lens_scan(nodes: int, k: int, keep: int, group: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(nodes)
    keys = torch.randint(-8, 9, (nodes, k), generator=generator).to(dtype)
    query = torch.randint(-4, 5, (k,), generator=generator).float()
    scales = 2.0 ** torch.randint(-3, 4, (nodes,), generator=generator) if dtype == torch.int8 else None
    expected = lens_scan_reference(keys, query, keep, group, scales)
    found = lens_scan(keys.cuda(), query.cuda(), keep, group, scales.cuda() if scales is not None else None)
    for out, right in zip(found, expected, strict=True):
        assert torch.equal(out.cpu(), right)


def test_lexical_scan() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randint(0, 9, (50,), generator=generator).float()
    tokens = torch.randint(-3, 60, (32 * 3000 + 7,), generator=generator, dtype=torch.int32)
    found, expected = (
        lexical_scan(tokens.cuda(), weights.cuda(), 8, 256),
        lexical_scan_reference(tokens, weights, 8, 256),
    )
    for out, right in zip(found, expected, strict=True):
        assert torch.equal(out.cpu(), right)


def test_a_pool_of_more_than_two_to_the_31_values() -> None:
    pages = torch.empty(2**31 // (32 * 4096) + 2, 32, 4096, dtype=torch.float16, device="cuda")
    last = pages.shape[0] * 32 - 1
    pages[-1, -1] = 3.0
    out = assemble_spans(
        torch.zeros(1, 4096, dtype=torch.float16, device="cuda"), pages, torch.tensor([-1 - last]).cuda()
    )
    assert (out == 3).all()
    queries, bias = torch.zeros(1, 4096, device="cuda"), torch.zeros(1, 32, device="cuda")
    rows = torch.full((1, 32), last, device="cuda")
    assert (gist_reduce(pages.view(-1, 4096), queries, bias, rows) == 3).all()
