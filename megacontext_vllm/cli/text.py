"""How sizes, times, errors and tables are written for people."""

import sys
import time

from rich.console import Console

PIPE_WIDTH = 140  # rich would break lines at 80 where there is no terminal


def out() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def size_text(size: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def time_text(seconds: float | None) -> str:
    return "unknown" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def age_text(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    age = max(time.time() - seconds, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= 2 * length:
            return f"{age / length:.0f} {unit} ago"
    return f"{age:.0f} s ago"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
