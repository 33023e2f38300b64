"""Which GistNet made the gists of a span: after a restore it decides which of them must be made again."""

from pathlib import Path

from megacontext_vllm.tree.gists import gist_versions, known_versions


def nets_of(folder: Path, level: int, start: int, stop: int) -> list[bytes | None]:
    """Which GistNet made each of gists ``[start, stop)``; None: to be made again. Raises IndexError, StoreError."""
    known = [None, *known_versions(folder)]
    versions = gist_versions(folder, level, start, stop).tolist()
    return [known[version] if version < len(known) else None for version in versions]
