"""Losses of a tiny random model against the same computed one window at a time, by hand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.gists import measure as module
from megacontext_vllm.eval.gists.layouts import TARGETS, GistLayout
from megacontext_vllm.eval.gists.makers import EveryNth, GistMaker, LastOnly, MeanGists, NetGists
from megacontext_vllm.eval.gists.measure import Way, measure
from megacontext_vllm.eval.gists.showing import Positions
from megacontext_vllm.eval.gists.summary import recovered_fraction
from megacontext_vllm.eval.gists.windows import draw
from megacontext_vllm.eval.readers.transformers_reader import TransformersReader
from megacontext_vllm.nets.gistnet import RandomGistNet

ONE = GistLayout("one", 1, 3, 10)
TWO = GistLayout("two", 2, 1, 0)


@dataclass(frozen=True)
class Stream:
    tokens: NDArray[np.uint32]
    starts: NDArray[np.int64]
    ids: list[str]


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> TransformersReader:
    return TransformersReader(tiny_model, device="cpu")


@pytest.fixture(scope="module")
def documents(tiny: TransformersReader, text: str) -> Stream:
    tokens = tiny.chat.encode(text[:60_000])
    return Stream(tokens, np.array([0, 3000, 6000]), ["a/0", "a/1", "b/0"])


@pytest.fixture(scope="module")
def makers(tiny: TransformersReader) -> list[GistMaker]:
    table = torch.from_numpy(tiny.embedding)
    net = NetGists("net", RandomGistNet(32, 1), table)
    return [EveryNth(table), MeanGists(table), net, LastOnly(net)]


def by_hand(reader: TransformersReader, rows: torch.Tensor, positions: list[int], targets: torch.Tensor) -> float:
    """Mean NLL of ``targets`` ``[64]`` behind ``rows`` ``[n, d]``; the causal mask is written out."""
    table = torch.from_numpy(reader.embedding)
    rows = torch.cat([rows, table[targets[:-1]]])[None]
    where = torch.tensor(positions + [positions[-1] + 1 + i for i in range(TARGETS - 1)])[None]
    width = rows.shape[1]
    mask = torch.full((1, 1, width, width), -torch.inf).triu(1)
    with torch.inference_mode():
        logits = reader.model(inputs_embeds=rows, attention_mask=mask, position_ids=where).logits[0, -TARGETS:]
    return float(torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("layout", [ONE, TWO])
@pytest.mark.parametrize("positions", list(Positions))
def test_losses_by_hand(
    tiny: TransformersReader, documents: Stream, makers: list[GistMaker], layout: GistLayout, positions: Positions
) -> None:
    (measured,) = measure(tiny, documents, makers, [layout], windows=3, seed=5, positions=[positions])
    table = torch.from_numpy(tiny.embedding)
    sink = table[tiny.chat.sink][None]
    assert measured.full is not None
    windows = draw(documents, layout.length, 3, 5)
    assert measured.documents == tuple(window.document for window in windows)
    for i, window in enumerate(windows):
        ids = torch.from_numpy(window.tokens.astype(np.int64))
        older, tail, targets = ids.split([layout.older, layout.tail, TARGETS])
        whole = torch.cat([sink, table[older], table[tail]])
        assert measured.full[i] == pytest.approx(by_hand(tiny, whole, list(range(len(whole))), targets), rel=1e-5)
        short = torch.cat([sink, table[tail]])
        assert measured.dropped[i] == pytest.approx(by_hand(tiny, short, list(range(len(short))), targets), rel=1e-5)
        for maker in makers:
            nodes = older.view(-1, layout.span)
            middles = [1 + layout.span * n + layout.span // 2 for n in range(layout.gists)]
            if maker.last_only:
                nodes, middles = nodes[-1:], middles[-1:]
            rows = torch.cat([sink, maker.gists(nodes, layout.level), table[tail]])
            at = list(range(len(rows)))
            if positions is Positions.SPAN:
                at = [0, *middles, *(1 + layout.older + n for n in range(layout.tail))]
                if not layout.tail:  # the first target's place does not follow from what stands before it
                    continue
            loss = measured.shown[Way(maker.name, positions)][i]
            assert loss == pytest.approx(by_hand(tiny, rows, at, targets), rel=1e-5)


def test_gists_that_are_the_tokens_recover_everything(tiny: TransformersReader, documents: Stream) -> None:
    """At LOD0 a gist stands for one token, and that in its middle is the token itself."""
    cheat = EveryNth(torch.from_numpy(tiny.embedding))
    (measured,) = measure(tiny, documents, [cheat], [GistLayout("raw", 0, 96, 10)], windows=4)
    (losses,) = measured.shown.values()
    assert measured.full is not None and np.array_equal(losses, measured.full)
    found = recovered_fraction(losses, measured.dropped, measured.full)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    none = recovered_fraction(measured.dropped, measured.dropped, measured.full)
    assert (none.value, none.low, none.high) == (0.0, 0.0, 0.0)


def test_the_last_gist_is_one_of_one(tiny: TransformersReader, documents: Stream, makers: list[GistMaker]) -> None:
    (measured,) = measure(tiny, documents, makers, [TWO], windows=3)
    assert np.array_equal(measured.shown[Way("net")], measured.shown[Way("net, last gist only")])


def test_batches_do_not_matter(
    tiny: TransformersReader, documents: Stream, makers: list[GistMaker], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = []
    for entries in (1, 100_000):
        monkeypatch.setattr(module, "ENTRIES_AT_ONCE", entries)
        (measured,) = measure(tiny, documents, makers, [ONE], windows=5)
        assert measured.full is not None
        outcomes.append(np.stack([measured.full, measured.dropped, *measured.shown.values()]))
    np.testing.assert_allclose(outcomes[0], outcomes[1], rtol=1e-5)


def test_the_same_seed_is_the_same_to_the_bit(
    tiny: TransformersReader, documents: Stream, makers: list[GistMaker]
) -> None:
    """And neither other makers nor other layouts change anything."""
    (alone,) = measure(tiny, documents, makers[:1], [ONE], windows=4, seed=2)
    among = measure(tiny, documents, makers, [TWO, ONE], windows=4, seed=2)[1]
    assert np.array_equal(alone.shown[Way("every 32nd token")], among.shown[Way("every 32nd token")])
    assert np.array_equal(alone.dropped, among.dropped)
    other = measure(tiny, documents, makers[:1], [ONE], windows=4, seed=3)[0]
    assert not np.array_equal(alone.dropped, other.dropped)


def test_progress_counts_entries(tiny: TransformersReader, documents: Stream, makers: list[GistMaker]) -> None:
    seen: list[tuple[int, int]] = []
    measure(tiny, documents, makers, [ONE, TWO], windows=3, progress=lambda *now: seen.append(now))
    assert seen[0][0] == 0 and seen[-1][0] == seen[-1][1] and seen == sorted(seen)
    assert len({total for _, total in seen}) == 1


def test_more_tokens_than_positions(tiny: TransformersReader, text: str, makers: list[GistMaker]) -> None:
    """The whole window does not fit the model; its gists do, in compact positions only."""
    long = Stream(tiny.chat.encode(text[:60_000]), np.array([0]), ["a/0"])
    layout = GistLayout("long", 1, 70, 32)
    assert tiny.limit is not None and layout.length > tiny.limit
    with pytest.raises(EvaluationError, match="'long' needs 2,337 positions"):
        measure(tiny, long, makers, [layout], windows=2)
    layout = GistLayout("long", 1, 70, 32, full=False)
    (measured,) = measure(tiny, long, makers, [layout], windows=2, positions=list(Positions))
    assert measured.full is None
    assert set(measured.shown) == {Way(maker.name) for maker in makers}


def test_plain_means_are_poison(model_dir: Path, text: str) -> None:
    """Of the default model: what quality.md found must be found again, or the measurement is wrong."""
    reader = TransformersReader(model_dir, device="cpu")
    tokens = reader.chat.encode(text[:100_000])
    table = torch.from_numpy(reader.embedding)
    layout = GistLayout("few", 1, 8, 32)
    (measured,) = measure(
        reader, Stream(tokens, np.array([0]), ["a/0"]), [MeanGists(table), EveryNth(table)], [layout], windows=6
    )
    assert measured.full is not None and measured.full.mean() < measured.dropped.mean()
    assert (measured.shown[Way("mean")] - measured.dropped).mean() > 1
    assert abs(measured.shown[Way("every 32nd token")] - measured.dropped).mean() < 0.5
