"""Work in a thread beside the engine's loop that keeps the loop waiting for as little as Python allows."""

import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SECONDS = 0.0005
"""After which a thread that wants to run may; Python's own 5 ms are a step of a small model on a GPU."""

_PIECE = 8192
"""Numbers of a list that it takes a fraction of that time to let go of."""

_lock = threading.Lock()
_working = 0
_before = 0.0


@contextmanager
def giving_way() -> Iterator[None]:
    """Within it, Python code of any thread of the process lets another one run after ``SECONDS`` at the latest.

    What holds the interpreter's lock in one call of C for longer is not helped by it: take large lists in pieces.
    """
    global _working, _before
    with _lock:
        if not _working:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(SECONDS, _before))
        _working += 1
    try:
        yield
    finally:
        with _lock:
            _working -= 1
            if not _working:
                sys.setswitchinterval(_before)


def let_go(numbers: Sequence[int]) -> None:
    """Empty a list that nobody else needs, in pieces: to let go of a million numbers at once takes 8 ms."""
    if not isinstance(numbers, list):  # an array goes at once
        return
    with giving_way():
        while numbers:
            del numbers[-_PIECE:]
