"""Gists from the paged pool, in the places where the Working Context shows them.

Two forms of one gather. :func:`span_gather_` overlays the output of a model's embedding layer, where the KV slot of a
position says whether it holds a gist: that is what the engine calls in every step. :func:`assemble_spans` makes a
Working Context ``[W, d]`` out of a plan of tokens and nodes, without a batch or a KV cache around it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PAGE = 32


def span_gather_reference(embeddings: Tensor, pages: Tensor, table: Tensor, slot_mapping: Tensor) -> Tensor:
    """Obviously right form of :func:`span_gather_`: one position after the other, on the host.

    Parameters as there; returns a new tensor and leaves ``embeddings`` alone.
    """
    out = embeddings.clone()
    rows = pages.reshape(-1, pages.shape[-1])
    for position, slot in enumerate(slot_mapping.tolist()[: len(out)]):
        if 0 <= slot < len(table) and (row := int(table[slot])) >= 0:
            out[position] = rows[row].to(out.dtype)
    return out


def span_gather_(embeddings: Tensor, pages: Tensor, table: Tensor, slot_mapping: Tensor) -> None:
    """Replace, in place, the embedding of every position whose KV slot carries a gist.

    Parameters
    ----------
    embeddings: [T, d], any float type, rows contiguous. T may exceed ``len(slot_mapping)`` (padding); the rest is
        left alone.
    pages: [P, 32, d], contiguous, the gist pool; row ``r`` of the pool is ``pages[r // 32, r % 32]``. Rows that no slot
        names may hold anything.
    table: [S] int32, KV slot -> pool row, -1 where the slot holds an ordinary token.
    slot_mapping: [n] int64, KV slot of each position; -1 for padding. A slot beyond the table, which only a profiling
        run with made-up slots has, carries no gist.

    No host synchronisation and no allocation on a GPU, so that it can be captured in a CUDA graph: a step without gists
    is one launch that reads the slots.
    """
    assert pages.dim() == 3 and pages.shape[1] == PAGE and pages.shape[2] == embeddings.shape[-1], pages.shape
    n = min(slot_mapping.shape[0], embeddings.shape[0])
    if embeddings.device.type == "cpu":
        _overlay_on_host(embeddings, pages, table, slot_mapping[:n])
    elif n:
        _overlay(embeddings, pages, table, slot_mapping, n)


def assemble_spans_reference(embedding_table: Tensor, pages: Tensor, plan: Tensor) -> Tensor:
    """Obviously right form of :func:`assemble_spans`."""
    rows = pages.reshape(-1, pages.shape[-1])
    entries = [embedding_table[x] if x >= 0 else rows[-1 - x].to(embedding_table.dtype) for x in plan.tolist()]
    return torch.stack(entries) if entries else embedding_table.new_empty(0, embedding_table.shape[1])


def assemble_spans(embedding_table: Tensor, pages: Tensor, plan: Tensor) -> Tensor:
    """The embeddings of a Working Context, ``[W, d]`` in the type of the embedding table.

    Parameters
    ----------
    embedding_table: [V, d], any float type, contiguous.
    pages: [P, 32, d], contiguous: the gist pool.
    plan: [W] int64, an entry each: a token id, or ``-1 - r`` for the gist in row ``r`` of the pool.
    """
    assert pages.dim() == 3 and pages.shape[1] == PAGE and pages.shape[2] == embedding_table.shape[1], pages.shape
    if embedding_table.device.type != "cpu":
        return _assemble(embedding_table, pages, plan)
    gists = plan < 0
    out = embedding_table.index_select(0, plan.clamp(min=0))
    out[gists] = pages.view(-1, pages.shape[-1]).index_select(0, -1 - plan[gists]).to(out.dtype)
    return out


def _overlay_on_host(embeddings: Tensor, pages: Tensor, table: Tensor, slots: Tensor) -> None:
    known = (slots >= 0) & (slots < table.shape[0])
    rows = torch.where(known, table[slots.clamp(0, max(table.shape[0] - 1, 0))].long(), -1) if len(table) else slots
    shown = torch.nonzero((rows >= 0) & known).squeeze(1)
    gists = pages.view(-1, pages.shape[-1]).index_select(0, rows[shown])
    embeddings.index_copy_(0, shown, gists.to(embeddings.dtype))


@triton.jit
def span_gather_kernel(  # type: ignore[no-untyped-def]
    embeddings,  # *[T, d], rows stride_e apart
    pages,  # *[P * 32, d]
    table,  # *int32 [S]
    slot_mapping,  # *int64 [n]
    num_slots,
    stride_e,
    d,
    D: tl.constexpr,
):
    """One program a position; most return after reading 8 + 4 bytes. Addresses are 64 bits wide."""
    i_t = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + i_t)
    if (slot >= 0) & (slot < num_slots):
        row = tl.load(table + slot).to(tl.int64)
        if row >= 0:
            for i_d in range(0, d, D):
                o_d = i_d + tl.arange(0, D)
                b_gist = tl.load(pages + row * d + o_d, mask=o_d < d)  # [D]
                p_out = embeddings + i_t * stride_e + o_d
                tl.store(p_out, b_gist.to(embeddings.dtype.element_ty), mask=o_d < d)


@triton.jit
def assemble_spans_kernel(  # type: ignore[no-untyped-def]
    out,  # *[W, d]
    embedding_table,  # *[V, d]
    pages,  # *[P * 32, d]
    plan,  # *int64 [W]
    d,
    D: tl.constexpr,
):
    """One program an entry. Two branches rather than a select of pointers: table and pool may differ in type."""
    i_w = tl.program_id(0).to(tl.int64)
    entry = tl.load(plan + i_w)
    for i_d in range(0, d, D):
        o_d = i_d + tl.arange(0, D)
        p_out = out + i_w * d + o_d
        if entry >= 0:
            b_row = tl.load(embedding_table + entry * d + o_d, mask=o_d < d)  # [D]
            tl.store(p_out, b_row.to(out.dtype.element_ty), mask=o_d < d)
        else:
            b_gist = tl.load(pages + (-1 - entry) * d + o_d, mask=o_d < d)  # [D]
            tl.store(p_out, b_gist.to(out.dtype.element_ty), mask=o_d < d)


def _overlay(embeddings: Tensor, pages: Tensor, table: Tensor, slot_mapping: Tensor, n: int) -> None:
    d = embeddings.shape[1]
    assert embeddings.stride(1) == 1 and pages.is_contiguous(), "rows of embeddings and pages have to be contiguous"
    tile, warps = _tile(d, embeddings.element_size())
    span_gather_kernel[(n,)](
        embeddings, pages, table, slot_mapping, table.shape[0], embeddings.stride(0), d, D=tile, num_warps=warps
    )


def _assemble(embedding_table: Tensor, pages: Tensor, plan: Tensor) -> Tensor:
    assert embedding_table.is_contiguous() and pages.is_contiguous(), "table and pages have to be contiguous"
    d = embedding_table.shape[1]
    out = torch.empty(len(plan), d, dtype=embedding_table.dtype, device=embedding_table.device)
    tile, warps = _tile(d, out.element_size())
    if len(plan):
        assemble_spans_kernel[(len(plan),)](out, embedding_table, pages, plan, d, D=tile, num_warps=warps)
    return out


def _tile(d: int, element_size: int) -> tuple[int, int]:
    """Elements a program moves at a time, and its warps: 16 bytes a lane and load, as wide as loads get."""
    lanes = triton.cdiv(d * element_size, 16)
    warps = min(8, max(1, triton.next_power_of_2(triton.cdiv(lanes, 32))))
    return min(triton.next_power_of_2(d), warps * 32 * 16 // element_size), warps


def compiled_forms() -> list[tuple[str, object, dict[str, str], dict[str, int], int]]:
    """What is compiled ahead of time in the tests: (name, kernel, types of arguments, constants, warps).

    ``i32:16``: a size that 16 divides.
    """
    forms: list[tuple[str, object, dict[str, str], dict[str, int], int]] = []
    for d, dtype, size in ((576, "bf16", 2), (4096, "bf16", 2), (5120, "fp16", 2), (577, "fp32", 4)):
        tile, warps = _tile(d, size)
        rows = {"embeddings": f"*{dtype}", "pages": f"*{dtype}", "table": "*i32", "slot_mapping": "*i64"}
        whole = "i32:16" if d % 16 == 0 else "i32"
        sizes = {"num_slots": "i32", "stride_e": whole, "d": whole}
        forms.append((f"span_gather d={d} {dtype}", span_gather_kernel, rows | sizes, {"D": tile}, warps))
        rows = {"out": f"*{dtype}", "embedding_table": f"*{dtype}", "pages": f"*{dtype}", "plan": "*i64", "d": whole}
        forms.append((f"assemble_spans d={d} {dtype}", assemble_spans_kernel, rows, {"D": tile}, warps))
    return forms
