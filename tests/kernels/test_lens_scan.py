"""``lens_scan`` and ``lexical_scan``, on the host and as their Triton kernels, against their references."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from megacontext_vllm.kernels import lens_scan as module
from megacontext_vllm.kernels.lens_scan import (
    BLOCK,
    lens_scan,
    lens_scan_reference,
    lexical_scan,
    lexical_scan_reference,
)

Scan = Callable[..., tuple[torch.Tensor, torch.Tensor]]
KINDS = [torch.float32, torch.float16, torch.bfloat16, torch.int8]


@pytest.fixture(params=["host", "kernel"])
def scans(request: pytest.FixtureRequest, interpreted: Callable[[str], ModuleType]) -> tuple[Scan, Scan]:
    """Both scans, as the host runs them and as the interpreter runs the kernels."""
    if request.param == "host":
        return lens_scan, lexical_scan
    kernels = interpreted("lens_scan")
    return (lambda keys, query, keep, group, scales=None: kernels._scan_keys(keys, query, keep, group, scales)), (
        kernels._scan_tokens
    )


def make_keys(nodes: int, k: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Keys, a query of small whole numbers and scales that are powers of two: sums are exact, equals are equal."""
    generator = torch.Generator().manual_seed(nodes * 1000 + k)
    keys = torch.randint(-8, 9, (nodes, k), generator=generator).to(dtype)
    query = torch.randint(-4, 5, (k,), generator=generator).float()
    scales = 2.0 ** torch.randint(-3, 4, (nodes,), generator=generator) if dtype == torch.int8 else None
    return keys, query, scales


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(
    ("nodes", "k", "keep", "group"),
    [(1, 1, 1, 16), (16, 5, 3, 16), (100, 63, 16, 32), (130, 128, 4, 64), (33, 7, 16, 16)],
)
def test_equals_the_reference(scans: tuple[Scan, Scan], nodes: int, k: int, keep: int, group: int, dtype) -> None:
    keys, query, scales = make_keys(nodes, k, dtype)
    values, found = scans[0](keys, query, keep, group, scales)
    expected_values, expected = lens_scan_reference(keys, query, keep, group, scales)
    assert values.shape == (-(-nodes // group), keep) and values.dtype == torch.float32
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_random_keys_to_within_rounding(scans: tuple[Scan, Scan]) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, query = torch.randn(300, 96, generator=generator).bfloat16(), torch.randn(96, generator=generator)
    values, nodes = scans[0](keys, query, 5, 64)
    expected, _ = lens_scan_reference(keys, query, 5, 64)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((keys.float() @ query)[nodes], values, rtol=1e-5, atol=1e-5)


def test_the_best_of_all_are_among_the_best_of_the_groups(scans: tuple[Scan, Scan]) -> None:
    generator = torch.Generator().manual_seed(1)
    keys, query = torch.randn(500, 16, generator=generator), torch.randn(16, generator=generator)
    values, nodes = scans[0](keys, query, 8, 32)
    best = torch.topk(values.flatten(), 8).indices
    assert set(nodes.flatten()[best].tolist()) == set(torch.topk(keys @ query, 8).indices.tolist())


def test_what_is_no_number_is_the_worst(scans: tuple[Scan, Scan]) -> None:
    keys = torch.ones(20, 3)
    keys[::2] = float("nan")
    values, nodes = scans[0](keys, torch.ones(3), 16, 16)
    assert nodes[0, :8].tolist() == [1, 3, 5, 7, 9, 11, 13, 15] and nodes[1, :2].tolist() == [17, 19]
    assert (nodes[0, 8:] == -1).all() and (nodes[1, 2:] == -1).all()
    assert values[0, :8].eq(3).all() and values[0, 8:].isneginf().all()


@pytest.mark.parametrize(("blocks", "over", "group", "keep"), [(1, 0, 16, 1), (40, 31, 16, 16), (129, 5, 64, 4)])
def test_lexical_equals_the_reference(scans: tuple[Scan, Scan], blocks: int, over: int, group: int, keep: int) -> None:
    generator = torch.Generator().manual_seed(blocks)
    weights = torch.randint(0, 9, (50,), generator=generator).float()
    tokens = torch.randint(-3, 60, (blocks * BLOCK + over,), generator=generator, dtype=torch.int32)
    assert (tokens >= 50).any(), "ids beyond the vocabulary weigh what its last entry does"
    values, nodes = scans[1](tokens, weights, keep, group)
    expected_values, expected = lexical_scan_reference(tokens, weights, keep, group)
    torch.testing.assert_close(values, expected_values, rtol=0, atol=0)
    torch.testing.assert_close(nodes, expected, rtol=0, atol=0)


def test_a_history_without_a_block(scans: tuple[Scan, Scan]) -> None:
    values, nodes = scans[1](torch.zeros(31, dtype=torch.int32), torch.ones(4), 4, 16)
    assert values.shape == nodes.shape == (0, 4)
    values, nodes = scans[0](torch.zeros(0, 8), torch.zeros(8), 4, 16)
    assert values.shape == nodes.shape == (0, 4)


def test_torch_finds_the_operators_well_behaved() -> None:
    keys, query, scales = make_keys(50, 8, torch.int8)
    torch.library.opcheck(module._lens_scan, (keys, query, 4, 16, scales))
    torch.library.opcheck(module._lens_scan, (keys.float(), query, 4, 16, None))
    torch.library.opcheck(module._lexical_scan, (torch.zeros(100, dtype=torch.int32), torch.ones(4), 2, 16))


def test_what_cannot_be_scanned_is_refused() -> None:
    keys, query, scales = make_keys(50, 8, torch.int8)
    for wrong in (
        (keys, query, 4, 16, None),
        (keys.float(), query, 4, 16, scales),
        (keys, query[:7], 4, 16, scales),
        (keys, query, 0, 16, scales),
        (keys, query, 17, 32, scales),
        (keys, query, 4, 48, scales),
    ):
        with pytest.raises(AssertionError):
            lens_scan(*wrong)
    with pytest.raises(AssertionError):
        lexical_scan(torch.zeros(64), torch.ones(4), 2, 16)
