"""Who may import whom: the table of CONTRIBUTING.md. Imports run one way, and only ``engine/`` knows vLLM."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = "megacontext_vllm"
OPEN = {f"{OURS}.errors", f"{OURS}.config"}

# Folder -> what it may import beside the standard library, itself and the modules open to all.
ALLOWED = {
    "kernels": {"torch", "triton"},
    f"{OURS}/tree": {"numpy", "google_crc32c"},
    f"{OURS}/nets": {"numpy", "torch", "transformers", "safetensors", f"{OURS}.kernels"},
    f"{OURS}/focus": {"numpy", f"{OURS}.tree", f"{OURS}.nets.lensnet"},
    f"{OURS}/corpus": {"numpy", "tokenizers"},
}


def imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(node.module or "")
    return found


def allowed(name: str, folder: str) -> bool:
    own = f"{OURS}.kernels" if folder == "kernels" else folder.replace("/", ".")
    if name.partition(".")[0] in sys.stdlib_module_names or name in OPEN:
        return True
    return any(name == base or name.startswith(f"{base}.") for base in {own, *ALLOWED[folder]})


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_run_one_way(folder: str) -> None:
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    wrong = {f"{file.name}: {name}" for file in files for name in imports(file) if not allowed(name, folder)}
    assert not wrong


@pytest.mark.parametrize(
    ("room", "above"),
    [("tree/files", ["store", "curation", "tree", "gists", "sealed", "meta"]), ("tree/store", ["curation"])],
)
def test_rooms_of_the_tree_know_nothing_above_them(room: str, above: list[str]) -> None:
    files = list((ROOT / OURS / room).rglob("*.py"))
    assert files
    wrong = {
        f"{file.name}: {name}"
        for file in files
        for name in imports(file)
        for part in above
        if f"{name}.".startswith(f"{OURS}.tree.{part}.")
    }
    assert not wrong


def test_only_the_engine_knows_vllm() -> None:
    files = [*(ROOT / OURS).rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    knows = {file.parent.name for file in files if any(name.partition(".")[0] == "vllm" for name in imports(file))}
    assert knows == {"engine"}


def test_nothing_below_imports_the_engine() -> None:
    folders = [*ALLOWED, *(f"{OURS}/{name}" for name in ("corpus", "training", "eval"))]
    below = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    assert not [file for file in below if any(name.startswith(f"{OURS}.engine") for name in imports(file))]
