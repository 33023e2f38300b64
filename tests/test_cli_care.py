"""``megacontext tree verify|repair|rename|pin|rm|grep|show``: what looks after stored trees."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as Bytes

from megacontext_vllm import cli
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of
from megacontext_vllm.tree.tree import MegaContextTree

MODEL = bytes(range(16))
WORDS = "the red car stood in Köln, 車 and nobody knew why. "


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def library(store: Path) -> Iterator[TreeLibrary]:
    opened = TreeLibrary(store, MODEL)
    yield opened
    opened.close()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tokenizer of single bytes: its ids are known, and letters outside ASCII are several tokens."""
    alphabet = sorted(Bytes.alphabet())
    tokenizer = Tokenizer(BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = Bytes(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def encode(model: Path, text: str) -> np.ndarray:
    return np.array(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids, np.uint32)


def run(*arguments: object) -> int:
    return cli.main(["tree", *map(str, arguments)])


def put(library: TreeLibrary, ids: np.ndarray, namespace: str = "default") -> MegaContextTree:
    acquired = library.acquire(namespace, ids)
    library.release(acquired.tree)
    return acquired.tree


def ids(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, length).astype(np.uint32)


def damage(tree: MegaContextTree, token: int) -> None:
    file = tree.path / "LOD0.ctx"
    data = bytearray(file.read_bytes())
    data[64 + 4 * token] ^= 1
    file.write_bytes(data)


def test_verify_and_repair(store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = put(library, ids(3000, 1)), put(library, ids(5000, 2))
    assert run("verify", "--store", store) == 0
    assert "2 trees, 0 damaged" in capsys.readouterr().out
    damage(bad, 2500)
    assert run("verify", "--store", store) == 1
    shown = capsys.readouterr().out
    assert "tokens 2,048 to 3,072: differs from its checksum" in shown
    assert "2 trees, 1 damaged" in shown and good.tree_id in shown
    assert run("verify", bad.tree_id[:6], "--json", "--store", store) == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["tokens"], found["damage"][0]["tokens"]) == (5000, [2048, 3072])
    held = library.get("default", bad.tree_id)
    assert run("repair", bad.tree_id, "--store", store) == 2
    assert "in use" in capsys.readouterr().err
    library.release(held)
    assert run("repair", bad.tree_id, "--store", store) == 0
    assert "tokens 2,048 to 3,072: lost" in capsys.readouterr().out
    assert run("verify", bad.tree_id, "--store", store) == 0
    assert run("show", bad.tree_id, "--store", store) == 0
    assert "tokens 2,048 to 3,072 are lost" in capsys.readouterr().out
    assert run("show", bad.tree_id, 2000, 2100, "--store", store) == 2
    assert run("repair", good.tree_id, "--json", "--store", store) == 0


def test_names_and_pins(store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = put(library, ids(100, 1)), put(library, ids(100, 2))
    assert run("rename", one.tree_id, "the minutes of 1821", "--store", store) == 0
    assert library.find("default", "the minutes of 1821").tree_id == one.tree_id
    assert run("rename", two.tree_id, "the minutes of 1821", "--store", store) == 2
    assert "another tree is called" in capsys.readouterr().err
    assert run("pin", two.tree_id, "--store", store) == 0
    assert read_meta(two.path)["pinned"]
    assert run("unpin", two.tree_id, "--store", store) == 0
    assert not read_meta(two.path)["pinned"]


def test_rm(store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    tree, damaged = put(library, ids(100, 1)), put(library, ids(100, 2))
    assert run("rm", tree.tree_id, "--store", store) == 2  # nobody to ask
    assert "--yes" in capsys.readouterr().err
    held = library.get("default", tree.tree_id)
    assert run("rm", tree.tree_id, "--yes", "--store", store) == 2
    library.release(held)
    (damaged.path / "meta.json").write_text("{")
    for gone in (tree, damaged):
        assert run("rm", gone.tree_id, "--yes", "--store", store) == 0
        assert not gone.path.exists()
    assert list((store / "trees" / "default").iterdir()) == []


def test_grep(store: Path, library: TreeLibrary, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = WORDS * 500
    text = text[:17_000] + "NEEDLE 車" + text[17_000:] + "needle"
    tree = put(library, encode(model, text))
    put(library, encode(model, "needle in another namespace"), namespace_of("alice"))
    every = ("--store", store, "--tokenizer", model)
    assert run("grep", "NEEDLE 車", "--json", *every) == 0
    (hit,) = json.loads(capsys.readouterr().out)
    assert (hit["tree_id"], hit["match"]) == (tree.tree_id, "NEEDLE 車")
    assert run("show", tree.tree_id, hit["start"], hit["stop"], *every) == 0
    assert capsys.readouterr().out == "NEEDLE 車\n"
    assert run("grep", "needle", "-i", "--json", *every) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert run("grep", "needle", "--cache-salt", "alice", *every) == 0
    assert "another namespace" in capsys.readouterr().out
    assert run("grep", "red", "--json", "--max-count", 999, *every) == 0  # none twice, though chunks overlap
    starts = [item["start"] for item in json.loads(capsys.readouterr().out)]
    assert len(starts) == 500 and len(set(starts)) == 500
    assert run("grep", "never said", *every) == 1
    assert run("grep", "(", *every) == 2
    assert run("grep", "(", "--fixed", *every) == 1
