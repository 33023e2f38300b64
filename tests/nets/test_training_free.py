"""Gists without training, against the obvious computation; the same for all levels."""

import pytest
import torch

from megacontext_vllm.nets.training_free import CentredMeanGists, KeywordGists

GENERATOR = torch.Generator().manual_seed(0)
EMBEDDING = torch.randn(100, 6, generator=GENERATOR) + 3


def tokens(n: int, size: int) -> torch.Tensor:
    return torch.randint(0, 100, (n, size), generator=GENERATOR)


@pytest.mark.parametrize("size", [32, 1024, 32_768])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint32])
def test_centred_means(size: int, dtype: torch.dtype) -> None:
    ids = tokens(3, size)
    gists = CentredMeanGists(EMBEDDING).gists(ids.to(dtype))
    assert gists.dtype == torch.float32 and gists.shape == (3, 6)
    centred = EMBEDDING[ids].double().mean(dim=1) - EMBEDDING.double().mean(dim=0)
    expected = centred / centred.norm(dim=1, keepdim=True) * EMBEDDING.norm(dim=1).median()
    # Of 32,768 random tokens the mean is nearly that of all: rounding shows most.
    assert torch.allclose(gists, expected.float(), atol=1e-4 if size <= 1024 else 2e-3)
    assert torch.allclose(gists.norm(dim=1), EMBEDDING.norm(dim=1).median().expand(3), rtol=1e-4)


def test_an_average_of_everything_is_no_nan() -> None:
    gists = CentredMeanGists(torch.ones(8, 4)).gists(torch.zeros(2, 32, dtype=torch.int64))
    assert torch.equal(gists, torch.zeros(2, 4))


@pytest.mark.parametrize("size", [32, 1024])
def test_keywords(size: int) -> None:
    ids = tokens(5, size)
    counts = torch.randint(0, 4, (100,), generator=GENERATOR)  # many are equally rare
    gists = KeywordGists(EMBEDDING, counts).gists(ids.to(torch.uint32))
    for row, gist in zip(ids.tolist(), gists, strict=True):
        rarest = min(range(size), key=lambda i: (int(counts[row[i]]), i))
        assert torch.equal(gist, EMBEDDING[row[rarest]])


@pytest.mark.parametrize("maker", [CentredMeanGists(EMBEDDING), KeywordGists(EMBEDDING, torch.arange(100))])
def test_splitting_changes_nothing(maker: CentredMeanGists | KeywordGists, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(70, 32)
    whole = maker.gists(ids)
    monkeypatch.setattr("megacontext_vllm.nets.training_free._TOKENS_AT_ONCE", 100)
    assert torch.equal(maker.gists(ids), whole)
    assert maker.gists(ids[:0]).shape == (0, 6)


def test_half_precision_embeddings_give_float32() -> None:
    assert CentredMeanGists(EMBEDDING.bfloat16()).gists(tokens(2, 32)).dtype == torch.float32
    assert KeywordGists(EMBEDDING.bfloat16(), torch.ones(100)).gists(tokens(2, 32)).dtype == torch.float32
