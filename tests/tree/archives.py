"""Archives taken apart and put together again, for the tests that forge them."""

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

from histories import MODEL, add_gists, seal
from numpy.typing import NDArray

from megacontext_vllm.tree.store.archive import export_tree
from megacontext_vllm.tree.store.tar import END, member_header, padding
from megacontext_vllm.tree.tree import MegaContextTree

Members = list[tuple[str, bytes]]


def archive_of(folder: Path, tokens: NDArray[Any], *sealed: tuple[int, int]) -> bytes:
    """The archive of a tree, with all gists, that is made in ``folder``."""
    with closing(
        MegaContextTree.create(folder, tree_id="a" * 32, namespace="default", model_fingerprint=MODEL)
    ) as tree:
        tree.append(tokens)
        add_gists(tree)
    if sealed:
        seal(folder, *sealed)
    file = io.BytesIO()
    with closing(MegaContextTree.open(folder, model_fingerprint=MODEL, writable=False)) as tree:
        export_tree(tree, file)
    return file.getvalue()


def members_of(archive: bytes) -> Members:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return [(member.name, archive[member.offset_data : member.offset_data + member.size]) for member in tar]


def tar_of(members: Members) -> bytes:
    parts = [member_header(name, len(data)) + data + bytes(padding(len(data))) for name, data in members]
    return b"".join(parts) + END


def forged(archive: bytes, change: Callable[[dict[str, Any], dict[str, bytes]], None]) -> bytes:
    """Change the manifest and the files; names, sizes and digests in the manifest are then made to fit."""
    members = members_of(archive)
    manifest, files = json.loads(members[0][1]), dict(members[1:])
    manifest.pop("files")
    change(manifest, files)
    if "files" not in manifest:
        manifest["files"] = [
            {"name": name, "bytes": len(data), "blake2b": blake2b(data, digest_size=32).hexdigest()}
            for name, data in files.items()
        ]
    return tar_of([("manifest.json", json.dumps(manifest).encode()), *files.items()])


def resigned(header: bytearray) -> bytes:
    """A tar header with its checksum made right."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
