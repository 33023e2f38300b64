"""``megacontext eval`` and ``corpus`` on the command line, on the real corpus and without a model's forward pass."""

import json
from pathlib import Path

import pytest

from megacontext_vllm.cli import main
from megacontext_vllm.corpus import corpus_folder


def test_listings_are_for_people_and_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "tasks", "--json"]) == 0
    tasks = json.loads(capsys.readouterr().out)
    assert {"needle", "no_shared_words", "continuation"} <= {task["name"] for task in tasks}
    assert main(["eval", "methods"]) == 0
    assert "bm25_256" in capsys.readouterr().out


def test_run_and_report(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is shown, measured twice: the second time only what is new."""
    out = tmp_path / "results"
    some = ["--model", str(model_dir), "--out", str(out), "--reader", "none", "--histories", "1", "--budgets", "512"]
    some += ["--tasks", "needle", "no_shared_words", "--methods", "tail", "megacontext", "oracle"]
    assert main(["eval", "run", *some, "--lengths", "8192"]) == 0
    first = (out / "results.jsonl").read_text()
    assert main(["eval", "run", *some, "--lengths", "8192", "16384"]) == 0
    assert (out / "results.jsonl").read_text().startswith(first)
    capsys.readouterr()
    assert main(["eval", "report", str(out), "--json", "--plots"]) == 0
    text = capsys.readouterr().out
    cells = json.loads(text[: text.rindex("]") + 1])
    found = {(c["task"], c["length"], c["method"]): c["recall"]["mean"] for c in cells}
    assert len(found) == 2 * 2 * 3
    for task in ("needle", "no_shared_words"):
        for length in (8192, 16384):
            assert found[task, length, "tail"] == 0.0 and found[task, length, "oracle"] == 1.0
    assert found["needle", 16384, "megacontext"] == 1.0
    pictures = {path.name for path in (out / "plots").iterdir()}
    assert {"recall-by-length-budget-512.png", "needle-position-budget-512.png"} <= pictures
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (out / "plots").iterdir())
    assert main(["eval", "report", str(out), "--markdown"]) == 0
    assert "| needle | 8,192 |" in capsys.readouterr().out


def test_another_lens_is_another_result(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ["--model", str(model_dir), "--reader", "none", "--histories", "1", "--budgets", "512", "--lengths", "8192"]
    some += ["--tasks", "no_shared_words", "--methods", "megacontext"]
    recall = {}
    for lens in ("blend", "lexical"):
        assert main(["eval", "run", *some, "--out", str(tmp_path / lens), "--lens", lens]) == 0
        capsys.readouterr()
        assert main(["eval", "report", str(tmp_path / lens), "--json"]) == 0
        recall[lens] = json.loads(capsys.readouterr().out)[0]["recall"]["mean"]
    assert recall["blend"] >= 0.5 > recall["lexical"]
    assert main(["eval", "run", *some, "--out", str(tmp_path / "blend"), "--lens", "lexical"]) != 0
    assert "lens" in capsys.readouterr().err


def test_worth(model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The block that states a number is worth showing to a real reader; what was measured is not measured again."""
    out = tmp_path / "worth"
    some = ["eval", "worth", "--model", str(model_dir), "--out", str(out), "--tasks", "needle", "--histories", "1"]
    some += ["--lengths", "4096", "--plot", "--threads", "2"]
    assert main([*some, "--budget", "256"]) == 0
    lines = (out / "worth.jsonl").read_text().splitlines()
    tried = json.loads(lines[1])[1]
    assert len(lines) == 2 and len({one["sample"] for one in tried}) == 4
    gains = {has: [min(one["gain"], 1) for one in tried if one["evidence"] is has] for has in (True, False)}
    assert sum(gains[True]) / len(gains[True]) > 0.5 > 0.2 > sum(gains[False]) / len(gains[False])
    assert all(one["utility"] >= 0.8 for one in tried if one["gain"] > 2), "the lenses said so"
    assert (out / "worth.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "are ordered rightly" in shown and "Expected gain" in shown
    (out / "worth.jsonl").write_text("\n".join(lines) + '\n["cut o')
    assert main([*some, "--budget", "256"]) == 0
    assert capsys.readouterr().out == shown and (out / "worth.jsonl").read_text().splitlines() == lines
    assert main([*some, "--budget", "512"]) != 0
    assert "was measured otherwise" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["worth", "--tasks", "continuation"], "'continuation' asks nothing"),
        (["run", "--tasks", "nedle"], "no task 'nedle'; there are: needle"),
        (["run", "--methods", "bm52"], "no method 'bm52'; there are: tail"),
        (["run", "--reader", "ftp://x"], "give 'transformers', 'none' or a server's http:// URL"),
        (["run", "--model", "/nowhere"], "/nowhere has no tokenizer.json"),
        (["report", "/nowhere"], "megacontext eval run"),
        (["gists", "--layouts", "hard"], "no layout 'hard'; there are: 'hard, LOD1', 'near, LOD1'"),
        (["show", "needle", "--length", "300"], "ask for longer histories"),
    ],
)
def test_errors_say_what_to_do(
    arguments: list[str], says: str, model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] != "report" and "--model" not in arguments:
        arguments = [*arguments, "--model", str(model_dir)]
    if arguments[0] == "run":
        arguments = [*arguments, "--out", str(tmp_path)]
        arguments += [] if "--reader" in arguments else ["--reader", "none"]
    assert main(["eval", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--methods", "served", "--quick"], "served needs a server: --reader http://HOST:PORT/v1"),
        (["run", "--methods", "served", "--reader", "none"], "served needs a server"),
        (["run", "--methods", "tail", "bm52"], "no method 'bm52'; there are: tail"),
        (["run", "--methods", "tail", "megacontext", "--budgets", "512", "10"], "--budgets 10: megacontext needs 64"),
        (["run", "--methods", "tail", "--budgets", "0"], "--budgets 0: tail needs 1 or more"),
        (["run", "--histories", "0", "--quick"], "--histories 0: give 1 or more"),
        (["run", "--encoder", "/absent"], "/absent holds no sentence encoder"),
        (["run", "--gist-net", "/absent"], "gist_net='/absent' is no folder"),
        (["run", "--gist-net", "/"], "/gistnet.safetensors does not exist"),
        (["worth", "--budget", "10"], "--budget 10: megacontext needs 64 or more"),
        (["worth", "--histories", "-1"], "--histories -1: give 1 or more"),
        (["worth", "--encoder", "/absent"], "/absent holds no sentence encoder"),
        (["show", "needle", "--budget", "10"], "--budget 10: megacontext needs 64 or more"),
        (["show", "nedle"], "no task 'nedle'"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_looked_for(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if arguments[0] == "show" else ["--out", str(tmp_path / "out")]
    assert main(["eval", *arguments, *out, "--model", "/nowhere"]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("document", "near"),
    [
        ("shakespeare/ham", "Did you mean: shakespeare/hamlet? "),
        ("shakespeare/", "shakespeare/as-you-like-it (33 more begin like that)? "),
        ("nope", "has the id nope. "),
    ],
)
def test_a_document_that_is_not_there(document: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "show", document]) == 2
    assert f"{near}All ids are in {corpus_folder() / 'documents.json'}" in capsys.readouterr().err
    ids = [row["id"] for row in json.loads((corpus_folder() / "documents.json").read_text())]
    assert "shakespeare/hamlet" in ids


def test_show_prints_the_question_and_what_each_method_shows(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(model_dir), "--length", "8192", "--methods", "tail", "oracle", "--text"]
    assert main(["eval", "show", "needle", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "oracle: 512 entries, 1 pieces, recall 1.00" in shown and "tail: 512 entries, 1 pieces, recall 0.00" in shown
