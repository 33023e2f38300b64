"""When bytes are forced to the disk. ``kill -9`` loses nothing under any policy: the page cache survives a process.

What differs is a power cut, or a crash of the whole machine:

``never``     the operating system decides (Linux: within about 30 s). Lost rows are found by their checksums.
``interval``  a thread forces out what was committed, every few seconds: a power cut costs at most that.
``always``    a commit returns when it is on the disk: nothing acknowledged is ever lost, at the disk's pace.
"""

import logging
import os
import threading
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

FsyncPolicy = Literal["never", "interval", "always"]


def sync_path(path: Path) -> None:
    """Force a file to the disk; of a folder, its names: after a rename or a new file. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Durability:
    """One policy, shared by all files of a store. Any thread may call it; ``close`` ends the thread of ``interval``.

    seconds   how often ``interval`` forces out, and so what a power cut can cost.
    """

    def __init__(self, policy: FsyncPolicy = "never", seconds: float = 5.0) -> None:
        assert seconds > 0
        self.policy = policy
        self.seconds = seconds
        self._lock = threading.Lock()
        self._dirty: set[Path] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def always(self) -> bool:
        return self.policy == "always"

    def wrote(self, *paths: Path) -> None:
        """Say that these files changed; ``interval`` will force them out. Costs a set insertion."""
        if self.policy != "interval":
            return
        with self._lock:
            self._dirty.update(paths)
            if self._thread is None and not self._stop.is_set():
                self._thread = threading.Thread(target=self._run, name="megacontext-fsync", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self.seconds):
            self.flush()

    def flush(self) -> None:
        """Force out everything that changed so far. Files that are gone are no loss; other errors are logged."""
        with self._lock:
            dirty, self._dirty = self._dirty, set()
        for path in sorted(dirty):
            try:
                sync_path(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.error("cannot force %s to the disk: %s; it may be lost if the machine stops", path, error)

    def close(self) -> None:
        """Force out the rest and end the thread. May be called twice."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        self.flush()


NEVER = Durability("never")
"""For files that are derived, or short-lived."""
