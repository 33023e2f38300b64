"""``megacontext tree verify|repair|rename|pin|rm|grep|show``: what looks after stored trees."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as Bytes

from megacontext_vllm import cli
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.files.level_reader import read_count
from megacontext_vllm.tree.meta import read_meta
from megacontext_vllm.tree.nodes import num_nodes
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of
from megacontext_vllm.tree.tree import MegaContextTree

MODEL = bytes(range(16))
WORDS = "the red car stood in Köln, 車 and nobody knew why. "


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


def add_gists(tree: MegaContextTree) -> None:
    length = read_count(tree.path / "LOD0.ctx")
    for level in (1, 2):
        count = num_nodes(length, level)
        header = Header(level, RowType.FLOAT16, 8, 0, MODEL, b"n" * 16)
        rows = np.random.default_rng(level).random((count, 8)).astype(np.float16)
        write_rows(tree.path / f"LOD{level}.ctx", header, 0, rows)


def test_export_and_import(
    store: Path, library: TreeLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ids(5000, 1)
    tree = put(library, tokens)
    add_gists(tree)
    file = tmp_path / "tree.tar"
    assert run("export", tree.tree_id, file, "--store", store) == 0
    assert run("export", tree.tree_id, file, "--store", store) == 2
    assert "--force" in capsys.readouterr().err
    other = tmp_path / "other"
    assert run("import", file, "--store", other, "--cache-salt", "alice") == 0
    imported = capsys.readouterr().out.strip()
    assert imported == tree.tree_id
    there = TreeLibrary(other, MODEL)
    acquired = there.acquire(namespace_of("alice"), tokens)
    assert (acquired.tree.tree_id, acquired.reused) == (imported, 5000)
    rows = np.fromfile(tree.path / "LOD1.ctx", np.float16, offset=64).reshape(-1, 8)
    np.testing.assert_array_equal(acquired.tree.read_gists(1, 0, 156), rows)
    there.close()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert run("import", file, "--store", other) == 2
    assert run("import", tmp_path / "absent", "--store", other) == 2
    file.write_text("a list of things to do")
    capsys.readouterr()
    assert run("import", file, "--store", other) == 2
    assert f"{file}: this is not a megacontext archive (made by: megacontext tree export)" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_curate(store: Path, library: TreeLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = ids(60_000, 1)
    tree = put(library, tokens)
    add_gists(tree)
    cold = ("--cold-days", 0, "--store", store)
    assert run("curate", tree.tree_id, "--cold-days", 1, "--store", store) == 0
    shown = capsys.readouterr().out
    assert "compact" not in shown and "There is nothing to do." in shown
    for how in ((), ("--apply",)):
        assert run("curate", "--namespace", "nobody", "--store", store, *how) == 0
        assert capsys.readouterr().out == "There is nothing to do.\n"
    assert run("curate", tree.tree_id, *cold, "--json") == 0
    (plan,) = json.loads(capsys.readouterr().out)
    compact = [action for action in plan["actions"] if action["kind"] == "compact"]
    assert compact and all(action["start"] >= 4096 and action["stop"] <= 60_000 - 32_768 for action in compact)
    assert not (tree.path / "sealed.json").exists()
    (tmp_path / "plan.json").write_text(json.dumps([plan]))
    assert run("curate", "--plan-file", tmp_path / "plan.json", *cold) == 0
    assert "nothing to do" not in capsys.readouterr().out
    assert run("curate", "--plan-file", tmp_path / "plan.json", "--apply", *cold) == 0
    assert "are free" in capsys.readouterr().out
    assert run("show", tree.tree_id, "--store", store) == 0
    assert "compacted; their gist is left" in capsys.readouterr().out
    assert run("show", tree.tree_id, compact[0]["start"], "--store", store) == 2
    assert run("verify", tree.tree_id, "--store", store) == 0
    acquired = library.acquire("default", tokens)  # the client sends it again: the same tree
    assert (acquired.tree.tree_id, acquired.reused) == (tree.tree_id, 60_000)
    assert run("curate", tree.tree_id, "--apply", "--protect", "0:60000", *cold) == 0
    library.release(acquired.tree)
    assert run("curate", "--purge", -1, "--store", store) == 2
    assert "give 0 or more" in capsys.readouterr().err
    for action in compact:
        assert run("curate", tree.tree_id, "--restore", action["action_id"], "--store", store) == 0
    assert run("curate", tree.tree_id, "--log", "--store", store) == 0
    assert compact[0]["action_id"] in capsys.readouterr().out
    back = library.get("default", tree.tree_id)
    np.testing.assert_array_equal(back.read_tokens(0, 60_000), tokens)
    assert not back.sealed
    library.release(back)
    assert run("curate", tree.tree_id, "--restore", compact[0]["action_id"], "--store", store) == 2


def test_an_archived_tree_comes_back(
    store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = ids(5000, 1)
    tree = put(library, tokens)
    assert run("curate", tree.tree_id, "--archive-days", 0, "--apply", "--json", "--store", store) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert not tree.path.exists()
    assert run("curate", tree.tree_id[:8], "--restore", result["done"][0], "--store", store) == 0
    acquired = library.acquire("default", tokens)
    assert (acquired.tree.tree_id, acquired.reused) == (tree.tree_id, 5000)
    library.release(acquired.tree)
