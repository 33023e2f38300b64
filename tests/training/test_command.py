"""``megacontext train gistnet`` from the command line, with a tiny model and a small corpus."""

import argparse
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from megacontext_vllm.cli.train import add_train_commands
from megacontext_vllm.corpus.document import Document
from megacontext_vllm.corpus.storage import write
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.checkpoints import load
from megacontext_vllm.training.gistnet import loop

SMALL = ["--heads", "2", "--hidden", "16", "--levels", "1", "--windows", "128", "--dtype", "float32", "--cpu"]
QUICK = ["--validate-windows", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def model(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's tokenizer, and a model of a single layer."""
    folder = tmp_path_factory.mktemp("model")
    AutoTokenizer.from_pretrained(str(model_dir)).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def corpus(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    sizes = {"train": 20_000, "validation": 12_000, "test": 1_000}
    documents = [
        Document(id=f"sotu/{split}", source="sotu", kind="speech", licence="PD", split=split, text=text[:size])
        for split, size in sizes.items()
    ]  # type: ignore[arg-type]
    write(folder, documents, "0123456789ab")
    return folder


def megacontext(*arguments: Any) -> int:
    parser = argparse.ArgumentParser()
    add_train_commands(parser.add_subparsers(required=True))
    options = parser.parse_args(["train", "gistnet", *map(str, arguments)])
    status: int = options.run(options)
    return status


def test_trains_stops_and_resumes(
    model: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ["--model", model, "--corpus", corpus, "--out", tmp_path / "out", *QUICK]
    threads = torch.get_num_threads()
    step = loop.Training._step

    def interrupted(self: Any, share: float) -> float:
        if self.progress.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, share)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_step", interrupted)
        assert megacontext(*where, *SMALL, "--steps", 5) == 0
    raw = json.loads((tmp_path / "out" / "gistnet.json").read_text())
    assert raw["recipe"]["steps"] == 2 and raw["data"]["corpus"] == "0123456789ab" and raw["sizes"]["heads"] == 2
    with pytest.raises(ConfigError, match="heads 2 → 4"):
        megacontext(*where, "--resume", "--steps", 5, "--heads", 4)
    assert megacontext(*where, "--resume", "--steps", 5, "--cpu") == 0
    out = capsys.readouterr().out
    assert "Stopping after this step" in out and "Recovered fraction on 1 validation windows: near" in out
    raw = json.loads((tmp_path / "out" / "gistnet.json").read_text())
    assert raw["recipe"]["steps"] == 5 and raw["tokens_seen"] == 5 * 128
    assert load(tmp_path / "out", 16, bytes.fromhex(raw["model_fingerprint"])).trained
    again = [*where[:-len(QUICK) - 1], tmp_path / "again", *QUICK, *SMALL, "--steps", 1]
    assert megacontext(*again, "--init", tmp_path / "out" / "gistnet.safetensors") == 0
    begun = json.loads((tmp_path / "again" / "gistnet.json").read_text())["data"]["start"]
    assert begun == {"gist_fingerprint": raw["gist_fingerprint"], "tokens_seen": 5 * 128}
    torch.set_num_threads(threads)


def test_init_takes_a_file_too_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        megacontext("--help")
    assert "or its .safetensors file" in " ".join(capsys.readouterr().out.split())


def test_what_is_wrong_is_said(model: Path, corpus: Path, tmp_path: Path) -> None:
    where = ["--corpus", corpus, "--out", tmp_path / "out", *QUICK]
    with pytest.raises(ConfigError, match="--minutes"):
        megacontext("--model", model, *where, *SMALL)
    with pytest.raises(ConfigError, match="cannot be trained"):
        megacontext("--model", model, *where, *SMALL, "--steps", 1, "--kl", 0)
    with pytest.raises(ConfigError, match="--windows 10; give multiples of 32, at least 64.$"):
        megacontext("--model", model, *where, "--windows", 10, "--steps", 1)
    with pytest.raises(ConfigError, match="leave out --resume, or --init"):
        megacontext("--model", model, *where, "--steps", 1, "--resume", "--init", tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    with pytest.raises(ConfigError, match="--model"):
        megacontext("--model", tmp_path / "empty", *where, *SMALL, "--steps", 1)
