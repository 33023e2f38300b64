"""From a model's folder to the report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.errors import ConfigError, EvaluationError
from megacontext_vllm.eval.gists import run
from megacontext_vllm.eval.gists.layouts import QUICK, QUICK_WINDOWS
from megacontext_vllm.eval.gists.measure import Way
from megacontext_vllm.nets.card import Card
from megacontext_vllm.nets.checkpoints import save
from megacontext_vllm.nets.gistnet import RandomGistNet
from megacontext_vllm.nets.pooling import PoolingGistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel


@pytest.fixture(scope="module")
def documents(tiny_model: Path, text: str) -> TokenStream:
    ids = AutoTokenizer.from_pretrained(tiny_model).encode(text[:60_000])
    return TokenStream(np.array(ids, dtype=np.uint32), np.array([0, 6000]), ["a/0", "b/0"])


def test_quick(tiny_model: Path, documents: TokenStream) -> None:
    net = RandomGistNet(32, 0)
    report = run.measure_gists(tiny_model, [("net", net)], documents, quick=True, device="cpu")
    assert [one.layout for one in report.measured] == list(QUICK)
    for layout in QUICK:
        for name in ("net", "net, last gist only", "every 32nd token", "centred mean", "keyword", "mean"):
            cell = report.cell(layout.name, Way(name))
            assert cell is not None and cell.windows == QUICK_WINDOWS
    json.dumps(report.to_json(), allow_nan=False)


def test_the_corpus_is_the_default(tiny_model: Path, documents: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def stream(split: str, tokenizer_file: Path) -> TokenStream:
        asked.append((split, tokenizer_file))
        return documents

    monkeypatch.setattr(run, "token_stream", stream)
    run.measure_gists(tiny_model, layouts=QUICK[:1], windows=2, split="test", device="cpu")
    assert asked == [("test", tiny_model / "tokenizer.json")]


def test_nets_are_read_from_folders_for_this_model_only(
    tiny_model: Path, documents: TokenStream, tmp_path: Path
) -> None:
    fingerprint = FrozenModel.load(tiny_model, torch.float32).fingerprint
    net = PoolingGistNet(32, heads=2, hidden=8)
    for name, model in (("mine", fingerprint), ("another's", bytes(16))):
        save(net, tmp_path / name, Card(net.architecture, net.sizes, 32, name, model.hex()))
    wanted = {"layouts": QUICK[:1], "windows": 2, "device": "cpu"}
    makers = ["GistNet mine", "keyword"]
    report = run.measure_gists(
        tiny_model, documents=documents, net_folders=[tmp_path / "mine"], makers=makers, **wanted
    )
    assert [way.maker for way in report.ways] == makers
    with pytest.raises(ConfigError, match="another's"):
        run.measure_gists(tiny_model, documents=documents, net_folders=[tmp_path / "another's"], **wanted)
    with pytest.raises(EvaluationError, match="no gists 'keywords' are made; there are: every 32nd token"):
        run.measure_gists(tiny_model, documents=documents, makers=["keywords"], **wanted)
