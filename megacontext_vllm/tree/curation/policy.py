"""What a store's owner wants kept, and what may go."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from megacontext_vllm.errors import ConfigError

DAY_SECONDS = 86_400.0
MAX_LEVEL = 6
"""Highest node that is compacted as one: a gibitoken."""


@dataclass(frozen=True)
class CurationPolicy:
    """Which nodes are compacted, and which trees archived or deleted. Raises ConfigError for values out of range.

    cold_days             a node may go when nothing below its gist was made or shown for this long
    protect_head_tokens   the first tokens stay
    protect_tail_tokens   the newest tokens stay
    protected             spans ``(start, stop)`` of tokens that stay
    compact_level         the smallest nodes that are compacted; 2: 1,024 tokens
    max_level             the largest; a cold node is compacted as one with its cold siblings up to here
    max_access_count      what was shown more often than this stays, however long ago; None: no bound
    protect_sensitivity   what has this sensitivity or more stays; None: no bound
    archive_days          a tree not used for this long is archived; None: never
    delete_days           the same, deleted
    """

    cold_days: float = 30.0
    protect_head_tokens: int = 4_096
    protect_tail_tokens: int = 32_768
    protected: tuple[tuple[int, int], ...] = ()
    compact_level: int = 2
    max_level: int = 3
    max_access_count: int | None = None
    protect_sensitivity: float | None = None
    archive_days: float | None = None
    delete_days: float | None = None

    def __post_init__(self) -> None:
        for name in ("cold_days", "archive_days", "delete_days", "protect_sensitivity"):
            value = getattr(self, name)
            if value is None and name != "cold_days":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not _finite(value):
                raise ConfigError(f"curation: {name} is {value!r}; give a number")
            if value < 0 and name != "protect_sensitivity":
                raise ConfigError(f"curation: {name} is {value}; give 0 or more")
        for name in ("protect_head_tokens", "protect_tail_tokens", "max_access_count"):
            value = getattr(self, name)
            if not (value is None and name == "max_access_count") and not _is_count(value):
                raise ConfigError(f"curation: {name} is {value!r}; give a whole number, 0 or more")
        if not _is_count(self.compact_level) or not _is_count(self.max_level):
            raise ConfigError("curation: compact_level and max_level are whole numbers")
        if not 2 <= self.compact_level <= self.max_level <= MAX_LEVEL:
            raise ConfigError(
                f"curation: compact_level {self.compact_level} and max_level {self.max_level}; "
                f"give 2 <= compact_level <= max_level <= {MAX_LEVEL}"
            )
        for item in self.protected:
            if not (isinstance(item, tuple) and len(item) == 2 and all(map(_is_count, item)) and item[0] <= item[1]):
                raise ConfigError(f"curation: protected span {item!r}; give (start, stop) in tokens")

    def protects(self, start: int, stop: int, length: int) -> str | None:
        """Why tokens ``[start, stop)`` of a history of ``length`` must stay, or None."""
        if start < self.protect_head_tokens:
            return "head"
        if stop > length - self.protect_tail_tokens:
            return "tail"
        if any(first < stop and start < last for first, last in self.protected):
            return "protected"
        return None

    def to_json(self) -> dict[str, Any]:
        """As plain data, for ``from_json``."""
        return asdict(self) | {"protected": [list(item) for item in self.protected]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "CurationPolicy":
        """Raises ConfigError for an unknown key or a bad value."""
        if not isinstance(data, Mapping):
            raise ConfigError("curation: a policy is an object of settings")
        known = {field.name for field in fields(cls)}
        if unknown := [str(key) for key in data if key not in known]:
            raise ConfigError(f"curation: unknown setting {unknown[0][:80]!r}; known: {', '.join(sorted(known))}")
        values = dict(data)
        spans = values.get("protected", ())
        if not isinstance(spans, (list, tuple)) or not all(isinstance(item, (list, tuple)) for item in spans):
            raise ConfigError("curation: protected is a list of [start, stop]")
        values["protected"] = tuple(tuple(item) for item in spans)
        return cls(**values)


def age_seconds(now: float, then: float) -> float:
    """How long ago ``then`` was, in seconds; 0 where the clock went backwards, so that nothing becomes old by it."""
    return max(now - then, 0.0)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond any float
        return False


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62
