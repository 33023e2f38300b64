"""The 32→1 reduction: all that a pooling GistNet does on the side of the tokens.

``out[i, h] = Σ_k softmax_k(children[i, k] · queries[h] + bias[h, k]) children[i, k]``

Children are read from where they lie: token ids through the embedding table for LOD1, rows of the gist pool above it.
A constant added to all children moves the sums by it and no weight, so that centring can wait until after the
reduction; a query of zeros with a bias of zeros gives the mean.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
LEAST = 16
"""Queries are padded to what tensor cores take at least."""


def gist_reduce_reference(children: Tensor, queries: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """Obviously right form of :func:`gist_reduce`, float64 ``[n, H, d]``, one number after the other."""
    gathered = children[rows] if rows is not None else children
    of_nodes, queries, bias = gathered.double(), queries.double(), bias.double()
    out = of_nodes.new_zeros(len(of_nodes), len(queries), of_nodes.shape[2])
    for node, of_node in enumerate(of_nodes):
        for head, query in enumerate(queries):
            weights = torch.stack([child @ query for child in of_node]).add(bias[head]).softmax(dim=0)
            for weight, child in zip(weights, of_node, strict=True):
                out[node, head] += weight * child
    return out


def gist_reduce(children: Tensor, queries: Tensor, bias: Tensor, rows: Tensor | None = None) -> Tensor:
    """Softmax-weighted sums of the 32 children of each node, one per query. Differentiable by all but ``rows``.

    Parameters
    ----------
    children: [n, 32, d], or, with ``rows``, [R, d]: an embedding table or the gist pool. Any float type; on a GPU not
        float64.
    queries: [H, d], float32 (or the type of the children). H ≤ 64.
    bias: [H, 32], of the type of the queries: by place in the block.
    rows: [n, 32] int64, which row each child is; each in [0, R).

    Returns
    -------
    [n, H, d] in the type of the children, for the one product that follows. Sums are taken in float32 or wider.
    """
    assert children.dim() == (3 if rows is None else 2), children.shape
    assert (children.shape if rows is None else rows.shape)[1] == BLOCK, "a node has 32 children"
    assert queries.shape[1] == children.shape[-1], (queries.shape, children.shape)
    assert bias.shape == (queries.shape[0], BLOCK), bias.shape
    assert rows is None or rows.dtype == torch.int64, "rows are int64"
    out: Tensor = torch.ops.megacontext.gist_reduce(children, queries, bias, rows)[0]
    return out


@torch.library.custom_op("megacontext::gist_reduce", mutates_args=())
def _gist_reduce(children: Tensor, queries: Tensor, bias: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sums, and the weights ``[n, H, 32]`` that the backward pass needs."""
    if children.device.type == "cpu":
        gathered = _gather(children, rows)
        weights = _weights(gathered, queries, bias)
        return torch.bmm(weights.to(gathered.dtype), gathered), weights
    return _forward(children, queries, bias, rows)


@_gist_reduce.register_fake
def _(children: Tensor, queries: Tensor, bias: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    n, heads = (children if rows is None else rows).shape[0], queries.shape[0]
    wide = torch.float64 if children.dtype == torch.float64 else torch.float32
    return children.new_empty(n, heads, children.shape[-1]), children.new_empty(n, heads, BLOCK, dtype=wide)


@torch.library.custom_op("megacontext::gist_reduce_backward", mutates_args=())
def _gist_reduce_backward(
    grad: Tensor, weights: Tensor, children: Tensor, queries: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the children as gathered, ``[n, 32, d]``, and of the scores, ``[n, H, 32]``."""
    if children.device.type == "cpu":
        wide, gathered = weights.dtype, _gather(children, rows)
        of_weights = torch.bmm(grad.to(wide), gathered.to(wide).transpose(1, 2))
        of_scores = weights * (of_weights - (weights * of_weights).sum(dim=-1, keepdim=True))
        of_children = torch.bmm(weights.transpose(1, 2), grad.to(wide))
        of_children = of_children + of_scores.transpose(1, 2) @ queries.to(wide)
        return of_children.to(children.dtype), of_scores
    return _backward(grad.contiguous(), weights, children, queries, rows)


@_gist_reduce_backward.register_fake
def _(grad: Tensor, weights: Tensor, children: Tensor, queries: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    return children.new_empty(weights.shape[0], BLOCK, children.shape[-1]), torch.empty_like(weights)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    children, queries, _, rows = inputs
    ctx.save_for_backward(output[1], children.contiguous(), queries, rows.contiguous() if rows is not None else None)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    weights, children, queries, rows = ctx.saved_tensors
    of_children, of_scores = torch.ops.megacontext.gist_reduce_backward(grad, weights, children, queries, rows)
    of_queries = None
    if ctx.needs_input_grad[1]:
        # One product over all children of all nodes, which is what GEMM libraries are for.
        gathered = _gather(children, rows).flatten(0, 1).to(of_scores.dtype)
        of_queries = (of_scores.transpose(0, 1).flatten(1) @ gathered).to(queries.dtype)
    if not ctx.needs_input_grad[0]:
        of_children = None  # a frozen embedding table is large
    elif rows is not None:
        # A row may be the child of many: their sum is taken in a wide type and rounded once.
        wide = torch.zeros(children.shape, dtype=of_scores.dtype, device=children.device)
        wide.index_add_(0, rows.flatten(), of_children.flatten(0, 1).to(wide.dtype))
        of_children = wide.to(children.dtype)
    return of_children, of_queries, of_scores.sum(dim=0).to(queries.dtype), None


_gist_reduce.register_autograd(_differentiate, setup_context=_remember)


def _gather(children: Tensor, rows: Tensor | None) -> Tensor:
    return children if rows is None else children.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def _weights(gathered: Tensor, queries: Tensor, bias: Tensor) -> Tensor:
    wide = torch.float64 if gathered.dtype == torch.float64 else torch.float32
    scores = torch.nn.functional.linear(gathered.to(wide), queries.to(wide)).transpose(1, 2)
    return (scores + bias.to(wide)).softmax(dim=-1)


@triton.jit
def gist_reduce_kernel(  # type: ignore[no-untyped-def]
    out,  # *[n, H, d]
    weights,  # *fp32 [n, H, 32]
    children,  # *[R, d]
    rows,  # *int64 [n, 32], or anything where IN_ORDER
    queries,  # *fp32 [H, d]
    bias,  # *fp32 [H, 32]
    heads,
    d,
    H: tl.constexpr,
    D: tl.constexpr,
    IN_ORDER: tl.constexpr,
):
    """One program a node. Children come from memory once: the second look at them, for the sums, finds them in L2.

    Queries and weights are split into two numbers of the children's type, so that bfloat16 children keep the accuracy
    of float32 scores on tensor cores of 16 bits.
    """
    i_n = tl.program_id(0).to(tl.int64)
    o_k, o_h = tl.arange(0, 32), tl.arange(0, H)
    m_h = o_h < heads
    if IN_ORDER:
        b_rows = i_n * 32 + o_k  # [32]
    else:
        b_rows = tl.load(rows + i_n * 32 + o_k)
    kind: tl.constexpr = children.dtype.element_ty
    b_scores = tl.load(bias + o_h[:, None] * 32 + o_k[None, :], mask=m_h[:, None], other=0.0)  # [H, 32]
    for i_d in range(0, d, D):
        o_d = i_d + tl.arange(0, D)
        m_d = o_d < d
        b_x = tl.load(children + b_rows[:, None] * d + o_d[None, :], mask=m_d[None, :], other=0.0)  # [32, D]
        p_q = queries + o_h[:, None] * d + o_d[None, :]
        b_q = tl.load(p_q, mask=m_h[:, None] & m_d[None, :], other=0.0)  # [H, D]
        b_high = b_q.to(kind)
        b_scores = tl.dot(b_high, tl.trans(b_x), b_scores, input_precision="ieee")
        if kind != tl.float32:
            b_low = (b_q - b_high.to(tl.float32)).to(kind)
            b_scores = tl.dot(b_low, tl.trans(b_x), b_scores, input_precision="ieee")
    b_e = tl.exp(b_scores - tl.max(b_scores, axis=1)[:, None])
    b_w = b_e / tl.sum(b_e, axis=1)[:, None]  # [H, 32]
    p_w = weights + (i_n * heads + o_h[:, None]) * 32 + o_k[None, :]
    tl.store(p_w, b_w, mask=m_h[:, None])
    b_w_high = b_w.to(kind)
    b_w_low = (b_w - b_w_high.to(tl.float32)).to(kind)
    for i_d in range(0, d, D):
        o_d = i_d + tl.arange(0, D)
        m_d = o_d < d
        b_x = tl.load(children + b_rows[:, None] * d + o_d[None, :], mask=m_d[None, :], other=0.0)
        b_sum = tl.dot(b_w_high, b_x, input_precision="ieee")  # [H, D]
        if kind != tl.float32:
            b_sum = tl.dot(b_w_low, b_x, b_sum, input_precision="ieee")
        p_out = out + (i_n * heads + o_h[:, None]) * d + o_d[None, :]
        tl.store(p_out, b_sum.to(kind), mask=m_h[:, None] & m_d[None, :])


@triton.jit
def gist_reduce_backward_kernel(  # type: ignore[no-untyped-def]
    of_children,  # *[n, 32, d]
    of_scores,  # *fp32 [n, H, 32]
    grad,  # *[n, H, d]
    weights,  # *fp32 [n, H, 32]
    children,  # *[R, d]
    rows,  # *int64 [n, 32], or anything where IN_ORDER
    queries,  # *fp32 [H, d]
    heads,
    d,
    H: tl.constexpr,
    D: tl.constexpr,
    IN_ORDER: tl.constexpr,
):
    """One program a node, in float32: training is bound by the frozen model, not by this."""
    i_n = tl.program_id(0).to(tl.int64)
    o_k, o_h = tl.arange(0, 32), tl.arange(0, H)
    m_h = o_h < heads
    if IN_ORDER:
        b_rows = i_n * 32 + o_k
    else:
        b_rows = tl.load(rows + i_n * 32 + o_k)
    p_w = (i_n * heads + o_h[:, None]) * 32 + o_k[None, :]
    b_w = tl.load(weights + p_w, mask=m_h[:, None], other=0.0)  # [H, 32]
    b_dw = tl.zeros([H, 32], dtype=tl.float32)
    for i_d in range(0, d, D):
        o_d = i_d + tl.arange(0, D)
        m_d = o_d < d
        b_x = tl.load(children + b_rows[:, None] * d + o_d[None, :], mask=m_d[None, :], other=0.0).to(tl.float32)
        p_g = grad + (i_n * heads + o_h[:, None]) * d + o_d[None, :]
        b_g = tl.load(p_g, mask=m_h[:, None] & m_d[None, :], other=0.0).to(tl.float32)  # [H, D]
        b_dw = tl.dot(b_g, tl.trans(b_x), b_dw, input_precision="ieee")
    b_ds = b_w * (b_dw - tl.sum(b_w * b_dw, axis=1)[:, None])  # [H, 32]
    tl.store(of_scores + p_w, b_ds, mask=m_h[:, None])
    for i_d in range(0, d, D):
        o_d = i_d + tl.arange(0, D)
        m_hd = m_h[:, None] & (o_d < d)[None, :]
        p_g = grad + (i_n * heads + o_h[:, None]) * d + o_d[None, :]
        b_g = tl.load(p_g, mask=m_hd, other=0.0).to(tl.float32)
        b_q = tl.load(queries + o_h[:, None] * d + o_d[None, :], mask=m_hd, other=0.0)
        b_dx = tl.dot(tl.trans(b_w), b_g, input_precision="ieee")  # [32, D]
        b_dx = tl.dot(tl.trans(b_ds), b_q, b_dx, input_precision="ieee")
        p_dx = of_children + (i_n * 32 + o_k[:, None]) * d + o_d[None, :]
        tl.store(p_dx, b_dx.to(of_children.dtype.element_ty), mask=(o_d < d)[None, :])


def _forward(children: Tensor, queries: Tensor, bias: Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
    n, heads, d = (children if rows is None else rows).shape[0], queries.shape[0], children.shape[-1]
    assert children.element_size() <= 4, f"{children.dtype} children are for the host only"
    children, rows = children.contiguous(), rows.contiguous() if rows is not None else None
    out = torch.empty(n, heads, d, dtype=children.dtype, device=children.device)
    weights = torch.empty(n, heads, BLOCK, dtype=torch.float32, device=children.device)
    constants, warps = _constants(heads, d, children.element_size())
    if n:
        gist_reduce_kernel[(n,)](
            out,
            weights,
            children,
            children if rows is None else rows,
            queries.float().contiguous(),
            bias.float().contiguous(),
            heads,
            d,
            **constants,
            IN_ORDER=rows is None,
            num_warps=warps,
        )
    return out, weights


def _backward(
    grad: Tensor, weights: Tensor, children: Tensor, queries: Tensor, rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    n, heads, d = weights.shape[0], weights.shape[1], children.shape[-1]
    of_children = torch.empty(n, BLOCK, d, dtype=children.dtype, device=children.device)
    of_scores = torch.empty_like(weights)
    constants, warps = _constants(heads, d, 4)
    if n:
        gist_reduce_backward_kernel[(n,)](
            of_children,
            of_scores,
            grad,
            weights,
            children,
            children if rows is None else rows,
            queries.float().contiguous(),
            heads,
            d,
            **constants,
            IN_ORDER=rows is None,
            num_warps=warps,
        )
    return of_children, of_scores


def _constants(heads: int, d: int, element_size: int) -> tuple[dict[str, int], int]:
    """Sizes of the tiles, and warps: a tile of the children is at most 8 KiB, so that several are under way."""
    assert heads <= 64, f"{heads} queries: at most 64"
    tile = min(triton.next_power_of_2(max(d, LEAST)), 256 // element_size)
    return {"H": max(LEAST, triton.next_power_of_2(heads)), "D": tile}, 8 if element_size == 4 else 4


def compiled_forms() -> list[tuple[str, object, dict[str, str], dict[str, int], int]]:
    """What is compiled ahead of time in the tests: (name, kernel, types of arguments, constants, warps).

    ``i32:16``: a size that 16 divides.
    """
    forms: list[tuple[str, object, dict[str, str], dict[str, int], int]] = []
    for d, heads, dtype, size in ((576, 9, "bf16", 2), (4096, 9, "bf16", 2), (5120, 8, "fp16", 2), (577, 4, "fp32", 4)):
        for in_order in (0, 1):
            name = f"d={d} H={heads} {dtype} {'in order' if in_order else 'by rows'}"
            ints = {"heads": "i32", "d": "i32:16" if d % 16 == 0 else "i32"}
            constants, warps = _constants(heads, d, size)
            given = {"out": f"*{dtype}", "weights": "*fp32", "children": f"*{dtype}", "rows": "*i64"}
            given |= {"queries": "*fp32", "bias": "*fp32"} | ints
            constants |= {"IN_ORDER": in_order}
            forms.append((f"gist_reduce {name}", gist_reduce_kernel, given, constants, warps))
            constants, warps = _constants(heads, d, 4)
            given = {"of_children": f"*{dtype}", "of_scores": "*fp32", "grad": f"*{dtype}", "weights": "*fp32"}
            given |= {"children": f"*{dtype}", "rows": "*i64", "queries": "*fp32"} | ints
            constants |= {"IN_ORDER": in_order}
            forms.append((f"gist_reduce_backward {name}", gist_reduce_backward_kernel, given, constants, warps))
    return forms
