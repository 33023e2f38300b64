"""What setup.py installs, as a wheel and in editable form: the folder kernels/ must arrive as megacontext_vllm.kernels.

Built offline from a copy of the sources, so that no stale build folder of the checkout can make it pass.
"""

import configparser
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["setup.py", "pyproject.toml", "LICENSE", "README.md", "megacontext_vllm", "kernels"]


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def pip(*arguments: object, cwd: Path, python: object = sys.executable) -> None:
    run(python, "-m", "pip", "--disable-pip-version-check", *arguments, "--no-deps", "-q", cwd=cwd)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", ".", "--no-build-isolation", "--no-index", "-w", folder, cwd=sources)
    (built,) = folder.glob("megacontext_vllm-*.whl")
    return built


def test_wheel_holds_every_module_and_data_file(sources: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        str(path.relative_to(sources))
        for pattern in ("*.py", "*.json", "*.safetensors", "py.typed")
        for path in (sources / "megacontext_vllm").rglob(pattern)
    } | {f"megacontext_vllm/{path.relative_to(sources)}" for path in (sources / "kernels").rglob("*.py")}
    assert expected - names == set(), "not in the wheel"
    assert "megacontext_vllm/py.typed" in names
    assert not [name for name in names if not name.startswith("megacontext_vllm")], "nothing else at top level"
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_declares_its_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        entry_points = configparser.ConfigParser()
        entry_points.read_string(archive.read(name).decode())
    assert entry_points["vllm.general_plugins"]["megacontext"] == "megacontext_vllm.engine.register:register"
    assert entry_points["vllm.endpoint_plugins"]["megacontext"] == "megacontext_vllm.engine.endpoints:endpoint_plugin"
    assert entry_points["console_scripts"]["megacontext"] == "megacontext_vllm.cli:main"


def test_wheel_does_not_pull_in_torch_or_vllm(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    base = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert base
    assert not [line for line in base if "torch" in line or "vllm" in line]


def test_installed_wheel_imports_kernels(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    pip("install", "--no-index", "--target", target, wheel, cwd=tmp_path)
    code = f"import sys; sys.path.insert(0, {str(target)!r}); import megacontext_vllm.kernels as k; print(k.__file__)"
    # -P and a folder elsewhere: neither the checkout nor its editable install may answer.
    found = run(sys.executable, "-P", "-c", code, cwd=tmp_path).strip()
    assert found == str(target / "megacontext_vllm" / "kernels" / "__init__.py")


def test_tree_and_focus_need_neither_torch_nor_vllm(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    pip("install", "--no-index", "--target", target, wheel, cwd=tmp_path)
    code = (
        "import sys, pkgutil, importlib, megacontext_vllm.tree as tree, megacontext_vllm.focus as focus\n"
        "for package in (tree, focus):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "print(sorted({'torch', 'vllm', 'transformers', 'triton'} & set(sys.modules)))"
    )
    path = f"import sys; sys.path.insert(0, {str(target)!r})\n"
    assert run(sys.executable, "-P", "-c", path + code, cwd=tmp_path).strip() == "[]"


def test_editable_install_imports_kernels_from_the_folder(sources: Path, tmp_path: Path) -> None:
    # A venv of its own without pip (quick to make), which this environment's pip installs into and whose setuptools
    # it borrows for the build. Without dependencies nothing but our own modules can be found, so kernels/ is located,
    # not run: it needs torch.
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    import setuptools

    (site / "borrowed.pth").write_text(str(Path(setuptools.__file__).parents[1]) + "\n")
    run(
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python, "install"),
        *("--no-deps", "--no-index", "--no-build-isolation", "-q", "--editable", sources),
        cwd=tmp_path,
    )
    (site / "borrowed.pth").unlink()
    code = (
        "import importlib.util as u, importlib.metadata as m;"
        "print(u.find_spec('megacontext_vllm.kernels').origin);"
        "print(u.find_spec('kernels'));"
        "print([e.value for e in m.entry_points(group='vllm.general_plugins')])"
    )
    located, top_level, plugins = run(python, "-P", "-c", code, cwd=tmp_path).splitlines()
    assert located == str(sources / "kernels" / "__init__.py")
    assert top_level == "None"
    assert plugins == "['megacontext_vllm.engine.register:register']"
