"""``megacontext train lensnet`` from the command line, on a few words, with the real teacher."""

from pathlib import Path

import pytest

from megacontext_vllm.cli import main
from megacontext_vllm.corpus.document import Document
from megacontext_vllm.corpus.storage import write
from megacontext_vllm.nets.lensnet import load


@pytest.fixture(scope="module")
def corpus(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    parts = {"train": text[:30_000], "validation": text[30_000:60_000], "test": text[60_000:61_000]}
    documents = [
        Document(id=f"sotu/{split}", source="sotu", kind="speech", licence="PD", split=split, text=part)
        for split, part in parts.items()
    ]  # type: ignore[arg-type]
    write(folder, documents, "0123456789ab")
    return folder


def make(out: Path, wordnet: Path, corpus: Path, *more: str) -> int:
    arguments = ["--out", str(out), "--wordnet", str(wordnet), "--corpus", str(corpus), "--threads", "1"]
    return main(["train", "lensnet", *arguments, "--words", "150", "--steps", "20", "--width", "32", *more])


def test_makes_a_net(
    tmp_path: Path, wordnet_folder: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "a", wordnet_folder, corpus) == 0
    said = capfd.readouterr()
    assert "LensNet of 150 words" in said.out and str(tmp_path / "a") in said.out
    for phase in ("asking the teacher: 150", "fitting: 20", "calibrating: "):
        assert phase in said.err, "a line for each phase where there is no terminal"
    net = load(tmp_path / "a")
    assert len(net.words) == 150 and net.vectors.shape == (150, 32) and {"boot", "teeth"} <= set(net.words)
    assert net.card["trial"]["questions"] == 48 and net.card["data"]["teacher"] == "all-MiniLM-L6-v2"
    assert net.card["recipe"]["fit"]["steps"] == 20 and net.card["data"]["corpus"] == corpus.name
    assert make(tmp_path / "b", wordnet_folder, corpus) == 0
    assert load(tmp_path / "b").fingerprint == net.fingerprint, "the same again"
    assert make(tmp_path / "c", wordnet_folder, corpus, "--seed", "1") == 0
    assert load(tmp_path / "c").fingerprint != net.fingerprint


def test_what_is_missing_is_told(
    tmp_path: Path, wordnet_folder: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make(tmp_path / "a", tmp_path, corpus) == 2
    assert "apt-get install wordnet-base" in capsys.readouterr().err
    assert make(tmp_path / "a", wordnet_folder, tmp_path) == 2
    assert "megacontext corpus fetch" in capsys.readouterr().err
    assert make(tmp_path / "a", wordnet_folder, corpus, "--teacher", str(tmp_path / "none")) == 2
    assert "--teacher" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
