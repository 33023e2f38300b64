"""A GistNet out of a folder, as ``megacontext train gistnet`` leaves it, or the shipped one, in a real engine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engines import Engine, greedy
from reference import Reference

from megacontext_vllm.nets.card import Card
from megacontext_vllm.nets.checkpoints import load, save
from megacontext_vllm.nets.embedding_space import EmbeddingSpace
from megacontext_vllm.nets.gistnet import load_gist_net
from megacontext_vllm.nets.pooling import PoolingGistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel

STEPS = 24


@pytest.fixture(scope="module")
def folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of the model's width that was never trained, but is not the mean either, with a card for this model."""
    base = FrozenModel.load(model_dir, torch.float32)
    torch.manual_seed(0)
    net = PoolingGistNet(base.dim, 4, 64, 2, space=EmbeddingSpace.of(base.table.weight))
    torch.nn.init.normal_(net.project.weight, std=0.05)
    folder = tmp_path_factory.mktemp("gistnet")
    save(net, folder, Card(net.architecture, net.sizes, base.dim, base.name, base.fingerprint.hex()))
    return folder


@pytest.mark.parametrize("name", ["a folder", "shipped"])
def test_the_engine_shows_the_gists_of_the_net_that_was_asked_for(
    start_engine: Callable[..., Engine], model_dir: Path, folder: Path, tokens: list[int], name: str
) -> None:
    base = FrozenModel.load(model_dir, torch.float32)
    net = str(folder) if name == "a folder" else name
    engine = start_engine({"gist_net": net, "window": 512})
    reference = Reference(model_dir, load_gist_net(net, base.dim, base.fingerprint))
    history = tokens[:40_000]
    (output,) = engine.ask([history], greedy(STEPS))
    levels = {entry["level"] for entry in engine.trace(output)["entries"] if entry["kind"] == "gist"}
    assert levels >= {1, 2}
    embeddings, ids = engine.shown(reference, history, output)
    assert list(output.outputs[0].token_ids) == reference.greedy(embeddings, ids, STEPS)


def test_a_net_for_another_model_is_refused_at_start(
    start_engine: Callable[..., Engine], folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = load(folder, 576)
    card = Card(other.architecture, other.sizes, 576, "Another-Model", bytes(16).hex())
    save(other, tmp_path, card)
    with pytest.raises(RuntimeError):
        start_engine({"gist_net": str(tmp_path)})
    said = capfd.readouterr()
    assert "makes gists for Another-Model" in said.out + said.err
