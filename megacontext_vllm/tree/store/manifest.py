"""``manifest.json`` of an archive: what is in it, how large, and the digest of each file."""

import json
import re
from dataclasses import dataclass
from typing import Any

from megacontext_vllm.errors import CorruptTreeError
from megacontext_vllm.tree.files.header import HEADER_BYTES
from megacontext_vllm.tree.nodes import depth, num_nodes
from megacontext_vllm.tree.store.places import is_tree_id

FORMAT, FORMAT_VERSION = "megacontext-tree", 1
NAME = "manifest.json"
DIGEST_BYTES = 32
"""Of blake2b."""
MAX_BYTES = 1 << 20
MAX_LENGTH = 1 << 48
"""Tokens; a level file of more could not be addressed."""
_MAX_FILES = 1000
_MAX_TIME = 1e12
"""Unix seconds; beyond lies no date that any program can show."""
_FILE = re.compile(
    r"(?:LOD(?P<level>0|[1-9][0-9]?)(?:\.ctx|\.[a-z][a-z_]{0,23}\.col)|meta\.json|gists\.json|sealed\.json)"
)


@dataclass
class FileEntry:
    """One file of an archive. ``digest``: blake2b of its bytes, 32 bytes."""

    name: str
    size: int
    digest: bytes = bytes(DIGEST_BYTES)


@dataclass(frozen=True)
class Manifest:
    """``files`` are in the order in which they follow."""

    tree_id: str
    namespace: str
    length: int
    model_fingerprint: bytes
    created: float
    name: str | None
    files: list[FileEntry]

    def pack(self) -> bytes:
        """As JSON; the size does not depend on the digests."""
        data = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "tree_id": self.tree_id,
            "namespace": self.namespace,
            "length": self.length,
            "model_fingerprint": self.model_fingerprint.hex(),
            "created": self.created,
            "name": self.name,
            "files": [{"name": file.name, "bytes": file.size, "blake2b": file.digest.hex()} for file in self.files],
        }
        return json.dumps(data, indent=1).encode("ascii") + b"\n"

    @staticmethod
    def parse(data: bytes) -> "Manifest":
        """Check every field. Raises CorruptTreeError."""
        try:
            found = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise CorruptTreeError(f"the archive's {NAME} is not valid JSON: {error}") from None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise CorruptTreeError("this is not an archive of a MegaContext Tree")
        if found.get("format_version") != FORMAT_VERSION:
            raise CorruptTreeError(
                f"the archive has format version {found.get('format_version')!r}, this release reads {FORMAT_VERSION}"
            )
        length: Any = found.get("length")
        created: Any = found.get("created")
        name: Any = found.get("name")
        if not isinstance(found.get("tree_id"), str) or not is_tree_id(found["tree_id"]):
            raise _wrong("tree_id")
        if not isinstance(found.get("namespace"), str):
            raise _wrong("namespace")
        if type(length) is not int or not 0 <= length <= MAX_LENGTH:
            raise _wrong("length")
        if type(created) not in (int, float) or not abs(created) < _MAX_TIME:
            raise _wrong("created")
        if name is not None and not isinstance(name, str):
            raise _wrong("name")
        model = _digits(found.get("model_fingerprint"), 16)
        if model is None:
            raise _wrong("model_fingerprint")
        files = _files(found.get("files"), length)
        return Manifest(found["tree_id"], found["namespace"], length, model, float(created), name, files)


def _files(items: Any, length: int) -> list[FileEntry]:
    if not isinstance(items, list) or len(items) > _MAX_FILES:
        raise _wrong("files")
    files = []
    for item in items:
        if not isinstance(item, dict):
            raise _wrong("files")
        name, size, digest = item.get("name"), item.get("bytes"), _digits(item.get("blake2b"), DIGEST_BYTES)
        match = _FILE.fullmatch(name) if isinstance(name, str) else None
        if match is None:
            raise CorruptTreeError("the archive has a file with a name that no tree has")
        if type(size) is not int or size < 0 or digest is None:
            raise _wrong(f"files: {name}")
        level = int(match["level"] or 0)
        if size > _most_bytes(match[0], length, level) or level > depth(length):
            raise CorruptTreeError(f"the archive has a {name} that a tree of {length} tokens cannot have")
        files.append(FileEntry(match[0], size, digest))
    names = [file.name for file in files]
    if len(set(names)) < len(names) or not {"meta.json", "LOD0.ctx"} <= set(names):
        raise CorruptTreeError("the archive has a file twice, or lacks meta.json or LOD0.ctx")
    return files


def column_bytes(nodes: int) -> int:
    """The most that a column takes that says something about ``nodes`` nodes."""
    return HEADER_BYTES + 4 * nodes


def _most_bytes(name: str, length: int, level: int) -> int:
    """How large a file may be; of a level file its header will say."""
    if name.endswith(".ctx"):
        return 1 << 62
    if name.endswith(".col"):
        return column_bytes(num_nodes(length, level))
    return {"meta.json": 1 << 16, "gists.json": 1 << 22, "sealed.json": 4096 + length // 1024 * 256}[name]


def _digits(text: Any, size: int) -> bytes | None:
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text):
        return None
    return bytes.fromhex(text)


def _wrong(field: str) -> CorruptTreeError:
    return CorruptTreeError(f"the archive's {NAME} has no sound {field}")
