"""``meta.json`` of a tree: who it is. It is replaced as a whole, so it is always one version or the other."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from megacontext_vllm.errors import CorruptTreeError, StoreError, UnknownTreeError
from megacontext_vllm.tree.files.durability import NEVER, Durability, sync_path
from megacontext_vllm.tree.files.locks import unlock

META = "meta.json"
META_VERSION = 1
_REQUIRED: dict[str, type] = {
    "format_version": int,
    "tree_id": str,
    "namespace": str,
    "created": float,
    "model_fingerprint": str,
}
_OPTIONAL: dict[str, tuple[type, ...]] = {"name": (str, type(None)), "pinned": (bool,)}


def read_meta(path: Path) -> dict[str, Any]:
    """What is known of the tree in folder ``path``; ``name`` (None) and ``pinned`` (False) have defaults.

    Raises UnknownTreeError, CorruptTreeError, StoreError.
    """
    try:
        text = (path / META).read_bytes()
    except FileNotFoundError:
        raise UnknownTreeError(f"there is no tree in {path}") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from error
    return parse_meta(text, str(path / META))


def parse_meta(text: bytes, where: str) -> dict[str, Any]:
    """Check the bytes of a ``meta.json``. Raises CorruptTreeError, which names ``where``."""
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptTreeError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(meta, dict) or not all(isinstance(meta.get(key), kind) for key, kind in _REQUIRED.items()):
        raise CorruptTreeError(f"{where} lacks one of {', '.join(_REQUIRED)}")
    if meta["format_version"] != META_VERSION:
        raise CorruptTreeError(f"{where}: format version {meta['format_version']}; this release reads {META_VERSION}")
    meta.setdefault("name", None)
    meta.setdefault("pinned", False)
    if not all(isinstance(meta[key], kinds) for key, kinds in _OPTIONAL.items()):
        raise CorruptTreeError(f"{where} has a wrong {' or '.join(_OPTIONAL)}")
    try:
        good = len(bytes.fromhex(meta["model_fingerprint"])) == 16
    except ValueError:
        good = False
    if not good:
        raise CorruptTreeError(f"{where} has a model fingerprint that is not 32 hexadecimal digits")
    return meta


def write_meta(path: Path, meta: dict[str, Any], durability: Durability = NEVER) -> None:
    """Put ``meta`` in place, whole. Raises OSError."""
    draft = path / f"{META}.tmp"
    with open(draft, "w", encoding="utf-8") as file:
        file.write(json.dumps(meta, indent=1) + "\n")
        if durability.always:
            file.flush()
            os.fsync(file.fileno())
    draft.replace(path / META)
    if durability.always:
        sync_path(path)
    durability.wrote(path / META)


def update_meta(path: Path, **changes: Any) -> dict[str, Any]:
    """Change some of it, also while another process writes the tree; returns the new whole.

    Raises UnknownTreeError, CorruptTreeError, StoreError.
    """
    if not (path / META).exists():
        raise UnknownTreeError(f"there is no tree in {path}")
    try:
        lock = os.open(path / "meta.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            meta = read_meta(path) | changes
            write_meta(path, meta)
            return meta
        finally:
            unlock(lock)
    except OSError as error:
        raise StoreError(f"cannot change {path / META}: {error.strerror}") from error
