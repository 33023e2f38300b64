"""The cases of benchmarks/kernels.py: what is called, beside what, and how many bytes that has to move."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from megacontext_vllm.kernels.gist_reduce import BLOCK, gist_reduce
from megacontext_vllm.kernels.lens_scan import lens_scan, lexical_scan
from megacontext_vllm.kernels.span_gather import PAGE, assemble_spans, span_gather_

from megacontext_vllm.nets.pooling import PoolingGistNet

GOALS = {"span_gather": 0.90, "assemble_spans": 0.90, "gist_reduce": 0.85, "lens_scan": 0.85, "lexical_scan": 0.85}
"""Shares of a device copy that are wanted on a GPU."""
VOCABULARY = 49_152
KEEP, GROUP = 8, 128


@dataclass(frozen=True)
class Case:
    """``contenders``: 'kernel' is ours, 'torch' is what it is compared with. ``bytes``: read and written, each once."""

    name: str
    size: str
    bytes: int
    contenders: dict[str, Callable[[], Any]]
    tolerance: float = 0.0
    loose: frozenset[str] = frozenset()  # whose results differ in form
    reference: str = "torch"
    tokens: int = 0  # where tokens per second are of interest

    def check(self, contender: str, found: Any, expected: Any) -> None:
        if contender in self.loose:
            return
        found, expected = (x[0] if isinstance(x, tuple) else x for x in (found, expected))
        found, expected = (torch.as_tensor(x).double().nan_to_num(neginf=0.0) for x in (found, expected))
        error = float((found.cpu() - expected.cpu()).norm() / expected.cpu().norm().clamp(min=1e-30))
        assert error <= self.tolerance, f"{self.name} {self.size}: {contender} is off by {error:.1e}"


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def span_gather(device: str, size: int) -> Iterator[Case]:
    """Every position holds a gist: the most that a step can ask for."""
    for d, dtype in ((576, torch.bfloat16), (4096, torch.bfloat16)):
        row = d * dtype.itemsize
        entries = size // (2 * row) // PAGE * PAGE
        pages = torch.randn(entries // PAGE, PAGE, d, device=device).to(dtype)
        order = torch.randperm(entries, device=device)
        slots, table = torch.randperm(entries, device=device), order.int()
        embeddings = torch.randn(entries, d, device=device).to(dtype)
        flat, rows = pages.view(-1, d), table[slots].long()

        def kernel(embeddings=embeddings, pages=pages, table=table, slots=slots):
            span_gather_(embeddings, pages, table, slots)
            return embeddings

        def plain(embeddings, flat, table, slots):
            rows = table[slots].long()
            return torch.where((rows >= 0).unsqueeze(1), flat[rows.clamp(min=0)], embeddings)

        fast = _compiled(plain)
        moved = entries * (2 * row + 8 + 4)
        given = (embeddings, flat, table, slots)
        contenders = {
            "kernel": kernel,
            "torch": lambda given=given, plain=plain: plain(*given),
            "torch.compile": lambda given=given, fast=fast: fast(*given),
            "index_select": lambda flat=flat, rows=rows: flat.index_select(0, rows),
        }
        yield Case("span_gather", f"d={d} {dtype}", moved, contenders)


def assemble(device: str, size: int) -> Iterator[Case]:
    """A Working Context of half tokens and half gists."""
    d, dtype = 4096, torch.bfloat16
    row = d * dtype.itemsize
    entries = size // (2 * row) // PAGE * PAGE
    table = torch.randn(VOCABULARY // 4, d, device=device).to(dtype)
    pages = torch.randn(max(entries // PAGE, 1), PAGE, d, device=device).to(dtype)
    tokens = torch.randint(len(table), (entries,), device=device)
    gists = -1 - torch.randint(pages.shape[0] * PAGE, (entries,), device=device)
    plan = torch.where(torch.rand(entries, device=device) < 0.5, tokens, gists)

    def plain():
        return torch.where(
            (plan >= 0).unsqueeze(1), table[plan.clamp(min=0)], pages.view(-1, d)[(-1 - plan).clamp(min=0)]
        )

    contenders = {
        "kernel": lambda: assemble_spans(table, pages, plan),
        "torch": plain,
        "index_select": lambda: table.index_select(0, plan.clamp(min=0)),
    }
    yield Case(
        "assemble_spans", f"d={d} {dtype}", entries * (2 * row + 8), contenders, loose=frozenset({"index_select"})
    )


def reduction(device: str, size: int) -> Iterator[Case]:
    for d, heads, dtype in ((576, 9, torch.bfloat16), (4096, 8, torch.bfloat16), (576, 9, torch.float32)):
        node = BLOCK * d * dtype.itemsize
        nodes = max(size // node, 1)
        children = torch.randn(nodes, BLOCK, d, device=device).to(dtype)
        queries, bias = torch.randn(heads, d, device=device) / d**0.5, torch.randn(heads, BLOCK, device=device)

        def plain(children, queries, bias):
            wide = children.float()
            weights = (torch.nn.functional.linear(wide, queries).transpose(1, 2) + bias).softmax(-1)
            return torch.bmm(weights, wide).to(children.dtype)

        fast = _compiled(plain)
        given = (children, queries, bias)
        contenders = {
            "kernel": lambda given=given: gist_reduce(*given),
            "torch": lambda given=given, plain=plain: plain(*given),
            "torch.compile": lambda given=given, fast=fast: fast(*given),
        }
        moved = nodes * (node + heads * d * dtype.itemsize)
        yield Case("gist_reduce", f"d={d} H={heads} {dtype}", moved, contenders, 5e-3)


def scan(device: str, size: int) -> Iterator[Case]:
    for k, dtype in ((128, torch.bfloat16), (128, torch.int8)):
        nodes = size // (k * dtype.itemsize) // GROUP * GROUP
        whole = torch.randint(-100, 100, (nodes, k), device=device)
        keys, query = whole.to(dtype), torch.randn(k, device=device)
        scales = torch.rand(nodes, device=device) if dtype == torch.int8 else None

        def plain(keys, query, scales):
            scores = torch.mv(keys.float(), query) * (scales if scales is not None else 1.0)
            return torch.topk(scores.view(-1, GROUP), KEEP, dim=1).values

        fast = _compiled(plain)
        given = (keys, query, scales)
        contenders = {
            "kernel": lambda given=given: lens_scan(given[0], given[1], KEEP, GROUP, given[2]),
            "torch": lambda given=given, plain=plain: plain(*given),
            "torch.compile": lambda given=given, fast=fast: fast(*given),
        }
        moved = keys.numel() * dtype.itemsize + (nodes * 4 if scales is not None else 0)
        yield Case("lens_scan", f"k={k} {dtype}", moved, contenders, 1e-4)


def lexical(device: str, size: int) -> Iterator[Case]:
    count = size // 4 // (BLOCK * GROUP) * BLOCK * GROUP
    tokens = torch.randint(VOCABULARY, (count,), device=device, dtype=torch.int32)
    weights = torch.rand(VOCABULARY, device=device)

    def plain():
        return torch.topk(weights[tokens.long()].view(-1, GROUP, BLOCK).sum(-1), KEEP, dim=1).values

    contenders: dict[str, Callable[[], Any]] = {
        "kernel": lambda: lexical_scan(tokens, weights, KEEP, GROUP),
        "torch": plain,
    }
    if device == "cpu":
        ids, table = tokens.numpy(), weights.numpy()

        def by_numpy():
            scores = table.take(ids).reshape(-1, GROUP, BLOCK).sum(-1)
            return -np.sort(-scores, axis=1)[:, :KEEP]

        contenders["NumPy"] = by_numpy
    yield Case("lexical_scan", f"{count:,} tokens", count * 4, contenders, 1e-4, tokens=count)


def ingest(device: str, size: int) -> Iterator[Case]:
    """Token ids on the device -> gists of all levels; and the same with the rows copied to the host."""
    d = 4096 if device == "cuda" else 576
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    table = torch.randn(VOCABULARY, d, device=device).to(dtype)
    net = PoolingGistNet(d, 8, 1024, 2).to(device).eval()
    count = 32**4 if device == "cuda" and size > 1 << 28 else 32**3
    ids = torch.randint(VOCABULARY, (count,), device=device)

    @torch.inference_mode()
    @torch.autocast(device, torch.bfloat16, enabled=dtype is torch.bfloat16)  # as the engine's gist pool has it
    def make():
        rows, made = table[ids], []
        for level in range(1, 64):
            if len(rows) < BLOCK:
                return made
            rows = net(rows.view(-1, BLOCK, d), level).to(dtype)
            made.append(rows)
        raise AssertionError

    contenders = {
        "kernel": lambda: torch.cat(make()),
        "kernel, and rows to the host": lambda: torch.cat(make()).cpu(),
    }
    moved = count * d * dtype.itemsize
    yield Case("ingest", f"{count:,} tokens, d={d}", moved, contenders, reference="kernel", tokens=count)


CASES = {
    "span_gather": span_gather,
    "assemble_spans": assemble,
    "gist_reduce": reduction,
    "lens_scan": scan,
    "lexical_scan": lexical,
    "ingest": ingest,
}
