"""``span_gather`` against its reference, and what must never leak into a position."""

import pytest
import torch
from megacontext_vllm.kernels.span_gather import PAGE, span_gather, span_gather_reference

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PAGES = 5


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
def test_equals_the_reference(tokens: int, dim: int, dtype: torch.dtype) -> None:
    for seed in range(4):
        arguments = batch(tokens, dim, dtype, seed=seed)
        out = span_gather(*arguments)
        assert out.dtype == dtype and out.shape == (tokens, dim)
        torch.testing.assert_close(out, span_gather_reference(*arguments), rtol=0, atol=0)


@pytest.mark.parametrize("function", [span_gather, span_gather_reference])
def test_every_kind_of_position(function) -> None:
    embeddings = torch.arange(12, dtype=torch.float32).view(6, 2)
    pages = -torch.arange(2 * PAGE * 2, dtype=torch.float32).view(2, PAGE, 2) - 1
    table = torch.tensor([-1, 0, 63, -1, 33], dtype=torch.int32)
    out = function(embeddings, pages, table, torch.tensor([1, 0, 4, -1, 2, 3]))
    expected = embeddings.clone()
    expected[0], expected[2], expected[4] = pages[0, 0], pages[1, 1], pages[1, 31]
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_pages_may_lie_anywhere() -> None:
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


def test_padding_and_slots_beyond_the_table_carry_no_gist() -> None:
    embeddings, pages, table, _ = batch(4, 5, torch.float32)
    table.fill_(0)  # every known slot holds a gist
    mapping = torch.tensor([-1, len(table), len(table) + 1000, 2**40])
    torch.testing.assert_close(span_gather(embeddings, pages, table, mapping), embeddings, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_that_no_slot_names_never_leak(dtype: torch.dtype) -> None:
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


def test_empty_slot_mapping_and_empty_batch() -> None:
    embeddings, pages, table, _ = batch(7, 5, torch.float32)
    none = torch.empty(0, dtype=torch.int64)
    torch.testing.assert_close(span_gather(embeddings, pages, table, none), embeddings, rtol=0, atol=0)
    assert span_gather(embeddings[:0], pages, table, none).shape == (0, 5)


def test_positions_behind_the_slot_mapping_are_left_alone() -> None:
    """CUDA graphs pad the batch: T may exceed the slot mapping, or fall short of it."""
    embeddings, pages, table, mapping = batch(33, 5, torch.float32)
    table = torch.where(table < 0, 3, table)
    out = span_gather(embeddings, pages, table, mapping[:20])
    torch.testing.assert_close(out[20:], embeddings[20:], rtol=0, atol=0)
    torch.testing.assert_close(out[:20], span_gather(embeddings, pages, table, mapping)[:20], rtol=0, atol=0)
    short = span_gather(embeddings[:20], pages, table, mapping)
    torch.testing.assert_close(short, out[:20], rtol=0, atol=0)


def test_inputs_are_not_modified_and_the_result_is_new() -> None:
    arguments = batch(33, 63, torch.float32)
    before = [argument.clone() for argument in arguments]
    out = span_gather(*arguments)
    out.fill_(7)
    for argument, copy in zip(arguments, before, strict=True):
        assert torch.equal(argument, copy)


def test_gists_take_the_type_of_the_embeddings() -> None:
    embeddings, pages, table, mapping = batch(33, 5, torch.float32)
    out = span_gather(embeddings.bfloat16(), pages, table, mapping)
    expected = span_gather_reference(embeddings.bfloat16(), pages, table, mapping)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


def test_pages_of_another_shape_are_refused() -> None:
    embeddings, pages, table, mapping = batch(7, 5, torch.float32)
    for wrong in (pages[:, :16], pages[..., :4], pages.view(-1, 5)):
        with pytest.raises(AssertionError):
            span_gather(embeddings, wrong, table, mapping)
