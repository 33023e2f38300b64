"""``span_gather`` on the host and as its Triton kernels, against its references: nothing leaks into a position."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from megacontext_vllm.kernels.span_gather import (
    PAGE,
    assemble_spans,
    assemble_spans_reference,
    span_gather_,
    span_gather_reference,
)

Gather = Callable[..., torch.Tensor]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PAGES = 5


@pytest.fixture(params=["host", "kernel"])
def span_gather(request: pytest.FixtureRequest, interpreted: Callable[[str], ModuleType]) -> Gather:
    """The overlay of a copy, as the host does it and as the interpreter runs the kernel."""
    overlay = span_gather_
    if request.param == "kernel":
        kernels = interpreted("span_gather")

        def overlay(embeddings, pages, table, mapping):
            if n := min(len(mapping), len(embeddings)):
                kernels._overlay(embeddings, pages, table, mapping, n)

    def gather(embeddings, pages, table, mapping):
        out = embeddings.clone()
        overlay(out, pages, table, mapping)
        return out

    return gather


def batch(tokens: int, dim: int, dtype: torch.dtype, *, seed: int = 0, slots: int = 96) -> tuple[torch.Tensor, ...]:
    """Embeddings, pages, table and slot mapping with gists, plain tokens, padding and unknown slots mixed."""
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(tokens, dim, generator=generator).to(dtype)
    pages = torch.randn(PAGES, PAGE, dim, generator=generator).to(dtype)
    rows = torch.randperm(PAGES * PAGE, generator=generator)[:slots].int()
    plain = torch.rand(slots, generator=generator) < 0.4
    table = torch.where(plain, -1, rows).int()
    mapping = torch.randperm(slots, generator=generator)[:tokens]
    kinds = torch.rand(tokens, generator=generator)
    mapping[kinds < 0.2] = -1
    return embeddings, pages, table, mapping


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [1, 5, 63, 576])
@pytest.mark.parametrize("tokens", [1, 7, 33])
def test_equals_the_reference(span_gather: Gather, tokens: int, dim: int, dtype: torch.dtype) -> None:
    for seed in range(4):
        arguments = batch(tokens, dim, dtype, seed=seed)
        out = span_gather(*arguments)
        assert out.dtype == dtype and out.shape == (tokens, dim)
        torch.testing.assert_close(out, span_gather_reference(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("reference", [False, True])
def test_every_kind_of_position(span_gather: Gather, reference: bool) -> None:
    function = span_gather_reference if reference else span_gather
    embeddings = torch.arange(12, dtype=torch.float32).view(6, 2)
    pages = -torch.arange(2 * PAGE * 2, dtype=torch.float32).view(2, PAGE, 2) - 1
    table = torch.tensor([-1, 0, 63, -1, 33], dtype=torch.int32)
    out = function(embeddings, pages, table, torch.tensor([1, 0, 4, -1, 2, 3]))
    expected = embeddings.clone()
    expected[0], expected[2], expected[4] = pages[0, 0], pages[1, 1], pages[1, 31]
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_pages_may_lie_anywhere(span_gather: Gather) -> None:
    """Moving pages, with the table rewritten to match, changes nothing."""
    embeddings, pages, table, mapping = batch(33, 63, torch.float32)
    order = torch.randperm(PAGES, generator=torch.Generator().manual_seed(9))
    moved = torch.empty_like(pages)
    moved[order] = pages
    rows = table.long()
    rewritten = torch.where(rows >= 0, order[(rows // PAGE).clamp(min=0)] * PAGE + rows % PAGE, -1).int()
    assert not torch.equal(rewritten, table)
    before = span_gather(embeddings, pages, table, mapping)
    torch.testing.assert_close(span_gather(embeddings, moved, rewritten, mapping), before, rtol=0, atol=0)


def test_padding_and_slots_beyond_the_table_carry_no_gist(span_gather: Gather) -> None:
    embeddings, pages, table, _ = batch(4, 5, torch.float32)
    table.fill_(0)  # every known slot holds a gist
    mapping = torch.tensor([-1, len(table), len(table) + 1000, 2**40])
    torch.testing.assert_close(span_gather(embeddings, pages, table, mapping), embeddings, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_no_slot_names_never_leak(span_gather: Gather, dtype: torch.dtype) -> None:
    for seed in range(4):
        embeddings, pages, table, mapping = batch(33, 5, dtype, seed=seed)
        known = mapping[mapping >= 0]
        used = table[known][table[known] >= 0].long()
        poisoned = torch.full_like(pages, float("nan"))
        poisoned.view(-1, 5)[used] = pages.view(-1, 5)[used]
        # Slots outside this batch may name poisoned rows as well.
        out = span_gather(embeddings, poisoned, table, mapping)
        assert not out.isnan().any()
        torch.testing.assert_close(out, span_gather(embeddings, pages, table, mapping), rtol=0, atol=0)


def test_empty_slot_mapping_and_empty_batch(span_gather: Gather) -> None:
    embeddings, pages, table, _ = batch(7, 5, torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    torch.testing.assert_close(span_gather(embeddings, pages, table, none), embeddings, rtol=0, atol=0)
    assert span_gather(embeddings[:0], pages, table, none).shape == (0, 5)


def test_positions_behind_the_slot_mapping_are_left_alone(span_gather: Gather) -> None:
    """CUDA graphs pad the batch: T may exceed the slot mapping, or fall short of it."""
    embeddings, pages, table, mapping = batch(33, 5, torch.float32)
    table = torch.where(table < 0, 3, table)
    out = span_gather(embeddings, pages, table, mapping[:20])
    torch.testing.assert_close(out[20:], embeddings[20:], rtol=0, atol=0)
    torch.testing.assert_close(out[:20], span_gather(embeddings, pages, table, mapping)[:20], rtol=0, atol=0)
    short = span_gather(embeddings[:20], pages, table, mapping)
    torch.testing.assert_close(short, out[:20], rtol=0, atol=0)


def test_only_the_embeddings_are_written_to(interpreted: Callable[[str], ModuleType]) -> None:
    arguments = batch(33, 63, torch.float32)
    before = [argument.clone() for argument in arguments]
    assert span_gather_(*arguments) is None
    assert not torch.equal(arguments[0], before[0])
    interpreted("span_gather")._overlay(*arguments, 33)
    for argument, copy in zip(arguments[1:], before[1:], strict=True):
        assert torch.equal(argument, copy)


def test_gists_take_the_type_of_the_embeddings(span_gather: Gather) -> None:
    embeddings, pages, table, mapping = batch(33, 5, torch.float32)
    out = span_gather(embeddings.bfloat16(), pages, table, mapping)
    expected = span_gather_reference(embeddings.bfloat16(), pages, table, mapping)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=0)  # the interpreter rounds towards zero


def test_pages_of_another_shape_are_refused() -> None:
    embeddings, pages, table, mapping = batch(7, 5, torch.float32)
    for wrong in (pages[:, :16], pages[..., :4], pages.view(-1, 5)):
        with pytest.raises(AssertionError):
            span_gather_(embeddings, wrong, table, mapping)
        with pytest.raises(AssertionError):
            assemble_spans(embeddings, wrong, mapping)


def test_rows_of_embeddings_may_lie_apart(span_gather: Gather, interpreted: Callable[[str], ModuleType]) -> None:
    """A slice of a wider tensor: the kernel goes by the stride, and nothing is written between the rows."""
    embeddings, pages, table, mapping = batch(9, 5, torch.float32)
    for overlay in (span_gather_, lambda *given: interpreted("span_gather")._overlay(*given, 9)):
        wide = torch.full((9, 12), 7.0)
        wide[:, 3:8] = embeddings
        overlay(wide[:, 3:8], pages, table, mapping)
        torch.testing.assert_close(wide[:, 3:8], span_gather(embeddings, pages, table, mapping), rtol=0, atol=0)
        assert (wide[:, :3] == 7).all() and (wide[:, 8:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d", [1, 63, 576, 1030])
@pytest.mark.parametrize("entries", [0, 1, 40])
def test_assembled_spans_equal_the_reference(
    interpreted: Callable[[str], ModuleType], entries: int, d: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(entries)
    table = torch.randn(50, d, generator=generator).to(dtype)
    pages = torch.randn(PAGES, PAGE, d, generator=generator).to(dtype)
    plan = torch.randint(-PAGES * PAGE, 50, (entries,), generator=generator)
    if entries > 1:
        plan[:4] = torch.tensor([0, -1, -PAGES * PAGE, -1])  # first and last row, one of them twice
    unused = torch.ones(PAGES * PAGE, dtype=torch.bool)
    unused[-1 - plan[plan < 0]] = False
    pages.view(-1, d)[unused] = float("nan")
    expected = assemble_spans_reference(table, pages, plan)
    for function in (assemble_spans, interpreted("span_gather")._assemble):
        out = function(table, pages, plan)
        assert out.dtype == dtype and out.shape == (entries, d)
        torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_addresses_beyond_two_to_the_31(interpreted: Callable[[str], ModuleType]) -> None:
    """A pool of 2^31 elements and more: the last rows are found. Memory is touched where it is read only."""
    pages = torch.empty(2**31 // (PAGE * 64) + 2, PAGE, 64, dtype=torch.float16)
    last = pages.shape[0] * PAGE - 1
    pages[-1, -1] = torch.arange(64).half()
    assert pages.numel() > 2**31
    embeddings = torch.zeros(1, 64, dtype=torch.float16)
    interpreted("span_gather")._overlay(
        embeddings, pages, torch.tensor([last], dtype=torch.int32), torch.zeros(1, dtype=torch.int64), 1
    )
    assert embeddings[0].tolist() == list(range(64))
    out = interpreted("span_gather")._assemble(embeddings, pages, torch.tensor([-1 - last]))
    assert out[0].tolist() == list(range(64))
