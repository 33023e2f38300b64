"""The command ``megacontext`` over real trees. Nothing that it does may change the store or wait for a server."""

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from megacontext_vllm import cli
from megacontext_vllm.cli import doctor, stored
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.tree.files.header import Header, RowType
from megacontext_vllm.tree.files.level_file import write_rows
from megacontext_vllm.tree.store.library import TreeLibrary, namespace_of
from megacontext_vllm.tree.tree import MegaContextTree

MODEL, OTHER_MODEL = bytes(range(16)), bytes(16)
DIM = 4


def tokens(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 40_000, length).astype(np.uint32)


@pytest.fixture
def tree(library: TreeLibrary) -> MegaContextTree:
    """3,000 tokens, gists of LOD1 in part, held by a library as a running server would."""
    acquired = library.acquire("default", tokens(3000, seed=1)).tree
    header = Header(1, RowType.FLOAT32, DIM, 0, MODEL, bytes([7]) * 16)
    write_rows(acquired.gist_path(1), header, 0, np.zeros((50, DIM), np.float32))
    return acquired


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_ls_lists_every_namespace_and_model(
    store: Path, library: TreeLibrary, tree: MegaContextTree, capsys: pytest.CaptureFixture[str]
) -> None:
    salted = library.acquire(namespace_of("alice"), tokens(40, seed=2)).tree
    other = TreeLibrary(store, OTHER_MODEL)
    foreign = other.acquire("default", tokens(50, seed=3)).tree
    other.close()
    assert run("tree", "ls", "--store", store) == 0
    shown = capsys.readouterr().out
    for expected in (tree.tree_id, salted.tree_id, foreign.tree_id, "3,000", "LOD0–1", namespace_of("alice"), "s ago"):
        assert expected in shown
    assert "3 trees, 3,090 tokens" in shown
    assert "unknown" not in shown

    assert run("tree", "ls", "--store", store, "--cache-salt", "alice", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(one["tree_id"], one["tokens"]) for one in listed] == [(salted.tree_id, 40)]
    assert run("tree", "ls", "--store", store, "--namespace", "default", "--json") == 0
    assert {one["tree_id"] for one in json.loads(capsys.readouterr().out)} == {tree.tree_id, foreign.tree_id}


def test_the_last_used_comes_first(store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (tokens(2000, seed) for seed in (1, 2))
    ids = [library.acquire("default", one).tree.tree_id for one in (first, second, first)]
    run("tree", "ls", "--store", store, "--json")
    assert [one["tree_id"] for one in json.loads(capsys.readouterr().out)] == [ids[0], ids[1]]


def test_info_says_how_far_the_gists_are(
    store: Path, tree: MegaContextTree, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("tree", "info", tree.tree_id[:8], "--store", store) == 0
    shown = capsys.readouterr().out
    assert "3,000" in shown and MODEL.hex() in shown and "being made" in shown
    assert run("tree", "info", tree.tree_id, "--store", store, "--json") == 0
    info = json.loads(capsys.readouterr().out)
    assert [(one["level"], one["rows"], one["nodes"]) for one in info["levels"]] == [(0, 3000, 3000), (1, 50, 93)]
    assert info["levels"][1]["gist_fingerprint"] == "07" * 16
    assert info["levels"][1]["bytes_on_disk"] == 64 + 50 * DIM * 4


def test_show_prints_ids(store: Path, tree: MegaContextTree, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tree", "show", tree.tree_id, 1000, 1070, "--store", store) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1,000", "1,032", "1,064"]
    shown = [int(word) for line in lines for word in line.split()[1:]]
    assert shown == tree.tokens(1000, 1070).tolist()


def test_show_prints_text(
    store: Path, library: TreeLibrary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    words = {"the": 0, "long": 1, "history": 2}
    model = tokenizers.models.WordLevel(words, unk_token="the")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))
    tree = library.acquire("default", np.array([0, 1, 2, 2], np.uint32)).tree
    assert run("tree", "show", tree.tree_id, 0, 3, "--store", store, "--tokenizer", folder) == 0
    assert capsys.readouterr().out == "the long history\n"
    other = library.acquire("default", np.array([9], np.uint32)).tree
    assert run("tree", "show", other.tree_id, 0, 1, "--store", store, "--tokenizer", folder) == 2
    assert "another model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tree", "info", "ffff"), "no tree 'ffff'"),
        (("tree", "info", ""), "2 trees"),
        (("tree", "show", "TREE", 0, 3001), "has 3,000"),
        (("tree", "show", "TREE", 5, 4), "tokens 5 to 4"),
        (("tree", "show", "TREE", 0, 9, "--tokenizer", "/absent"), "/absent: give a local folder with tokenizer.json"),
        (("tree", "info", "TREE", "--namespace", "abc"), "namespace abc"),
        (("tree", "info", "TREE", "--namespace", "../trees/default"), "no tree"),
        (("tree", "ls", "--store", "/absent"), "no store in /absent"),
    ],
)
def test_an_error_is_one_clear_line_and_status_2(
    arguments: tuple[object, ...],
    message: str,
    store: Path,
    library: TreeLibrary,
    tree: MegaContextTree,
    capsys: pytest.CaptureFixture[str],
) -> None:
    library.acquire("default", tokens(5, seed=9))
    where = () if "--store" in arguments else ("--store", store)
    assert run(*(tree.tree_id if a == "TREE" else a for a in arguments), *where) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("megacontext: error: ") and captured.err.count("\n") == 1


def test_damage_is_told_and_left_alone(
    store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = library.acquire("default", tokens(100, seed=1)).tree
    whole = library.acquire("default", tokens(200, seed=2)).tree
    file = lost.path / "LOD0.ctx"
    os.truncate(file, 100)
    (whole.path / "LOD1.ctx").write_bytes(b"no header")
    (store / "trees/default/unfinished").mkdir()
    library.close()
    (store / "index.sqlite").write_bytes(b"not a database" * 99)
    assert run("tree", "ls", "--store", store) == 0
    captured = capsys.readouterr()
    assert "damaged" in captured.out and whole.tree_id in captured.out
    assert "index.sqlite cannot be read" in captured.err
    assert run("tree", "info", lost.tree_id, "--store", store) == 2
    assert "too few" in capsys.readouterr().err
    assert run("tree", "info", whole.tree_id, "--store", store) == 0
    assert "header has 9 bytes" in capsys.readouterr().out
    assert file.stat().st_size == 100
    assert (store / "trees/default/unfinished").exists()
    assert not list(store.glob("*.damaged"))


def test_nothing_is_written_and_no_writer_is_locked_out(
    store: Path, library: TreeLibrary, tree: MegaContextTree, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[str, tuple[int, int]]:
        found = (file for file in store.rglob("*") if file.is_file())
        return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in found}

    before = files()
    with closing(stored.open_tree(tree.path)) as reading:
        tree.append(tokens(10, seed=4))  # the server's handle goes on writing
        assert reading.length == 3010
        assert not reading.writable
    for grown in ("LOD0.ctx", "LOD0.crc"):
        before[str(tree.path / grown)] = files()[str(tree.path / grown)]
    for command in (("ls",), ("info", tree.tree_id), ("show", tree.tree_id, 0, 9)):
        assert run("tree", *command, "--store", store) == 0
    # sqlite's shared memory is touched by any reader of an index that a server has open
    shared = str(store / "index.sqlite-shm")
    assert {**files(), shared: before[shared]} == before

    library.close()
    before = files()
    assert run("tree", "ls", "--store", store) == 0
    assert tree.tree_id in capsys.readouterr().out
    assert files() == before


def test_a_store_without_an_index_is_listed(
    store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    library.acquire("default", tokens(10, seed=1))
    library.close()
    for file in store.glob("index.sqlite*"):
        file.unlink()
    assert run("tree", "ls", "--store", store) == 0
    assert "unknown" in capsys.readouterr().out
    assert not list(store.glob("index.sqlite*"))


def test_an_empty_store_says_so(store: Path, library: TreeLibrary, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tree", "ls", "--store", store) == 0
    assert "No trees" in capsys.readouterr().out


def test_every_setting_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("settings", "--json") == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(MegaContextConfig.model_fields)
    assert all(one["description"] for one in listed.values())
    assert listed["head_tokens"]["default"] == 64
    assert run("settings") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in listed)


def healthy(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(doctor, "installed", {"vllm": "0.32.0+cpu", **versions}.get)
    monkeypatch.setattr(doctor, "graphics_cards", lambda: [])
    for name in ("MEGACONTEXT_DISABLE", "VLLM_PLUGINS", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.delenv(name, raising=False)


def test_doctor_is_content(store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    healthy(monkeypatch)
    assert run("doctor", "--store", store) == 0
    assert "All is well" in capsys.readouterr().out
    assert not store.exists()


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("MEGACONTEXT_DISABLE", "1", "unset MEGACONTEXT_DISABLE"),
        ("VLLM_PLUGINS", "other", "VLLM_PLUGINS=other,megacontext"),
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0", "unset VLLM_ENABLE_V1_MULTIPROCESSING"),
    ],
)
def test_doctor_finds_what_the_environment_breaks(
    variable: str,
    value: str,
    advice: str,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    healthy(monkeypatch)
    monkeypatch.setenv(variable, value)
    assert run("doctor", "--store", store) == 1
    assert advice in capsys.readouterr().out


@pytest.mark.parametrize(("found", "expected"), [("0.99.0", "0.99.0, tested was"), (None, "not installed")])
def test_doctor_finds_another_vllm(
    found: str | None,
    expected: str,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    healthy(monkeypatch)
    monkeypatch.setattr(doctor, "installed", {"vllm": found}.get)
    assert run("doctor", "--store", store) == 1
    assert expected in capsys.readouterr().out


def test_doctor_finds_a_store_that_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy(monkeypatch)
    (tmp_path / "file").write_text("")
    assert run("doctor", "--store", tmp_path / "file" / "store") == 1
    assert "is a file" in capsys.readouterr().out


def test_doctor_finds_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy(monkeypatch)
    monkeypatch.setattr(doctor, "LITTLE_SPACE", 1 << 60)
    assert run("doctor", "--store", tmp_path) == 1
    assert "free some of the disk" in capsys.readouterr().out


def test_it_needs_neither_torch_nor_vllm() -> None:
    code = (
        "import sys\n"
        "sys.modules.update(torch=None, vllm=None)\n"
        "from megacontext_vllm import cli\n"
        "sys.exit(cli.main(['settings']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "gap_marker" in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "says"),
    [
        ("examples/demo.py", ["--help"], "not listed here go to 'vllm serve'"),
        ("examples/demo.py", ["--document", "/nonexistent"], "'/nonexistent'). Give a file of plain text (--document)"),
        ("benchmarks/counterfactual.py", ["/nonexistent"], "There is no /nonexistent/worth.jsonl. Give the folder of:"),
    ],
)
def test_scripts_say_what_is_missing(script: str, arguments: list[str], says: str) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert says in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert done.returncode == ("--help" not in arguments)


def test_help_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    shown = capsys.readouterr().out
    assert "examples:" in shown and "megacontext tree ls" in shown
    assert run() == 2
    assert capsys.readouterr().out == shown
