"""What was made for somebody and may be wanted again: least recently used out first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Remembered(Generic[Key, Value]):
    """Values by namespace and key. Threads may share it.

    What is known of one namespace is never found for another: how long things take would tell what others sent.
    """

    def __init__(self, most: int, size: Callable[[Value], int]) -> None:
        """most: of all of them together, as ``size`` measures them; the last one stays whatever it has."""
        self._left, self._size = most, size
        # Each with what it measured when it came: Python's texts grow while they are in use.
        self._known: OrderedDict[tuple[str | None, Key], tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, namespace: str | None) -> list[tuple[Key, Value]]:
        """All of a namespace, the least recently used first; none of them counts as used by that."""
        with self._lock:
            return [(key, value) for (of, key), (value, _) in self._known.items() if of == namespace]

    def use(self, namespace: str | None, key: Key) -> Value | None:
        """What has ``key``, used now; None if nothing does, any more."""
        with self._lock:
            if (namespace, key) not in self._known:
                return None
            self._known.move_to_end((namespace, key))
            return self._known[namespace, key][0]

    def put(self, namespace: str | None, key: Key, value: Value, instead: Key | None = None) -> None:
        """Remember ``value``, in the place of what had ``key`` and of what has the key ``instead``."""
        with self._lock:
            for other in (key, instead):
                if other is not None and (namespace, other) in self._known:
                    self._left += self._known.pop((namespace, other))[1]
            size = self._size(value)
            self._known[namespace, key] = value, size
            self._left -= size
            while self._left < 0 and len(self._known) > 1:
                _, (_, oldest) = self._known.popitem(last=False)
                self._left += oldest
