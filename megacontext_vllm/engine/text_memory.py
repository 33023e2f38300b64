"""How much of a machine's memory goes to the texts that were asked about last: their tokens, and their indexes."""

import os
from collections.abc import Iterable
from pathlib import Path

from megacontext_vllm.config import MegaContextConfig

_SHARE = 32
_MOST = 4 << 30
_CONTAINER_LIMITS = tuple(  # of Linux's control groups, second and first version; "max" or a huge number: none
    Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory/memory.limit_in_bytes")
)


def text_memory(settings: MegaContextConfig) -> int:
    """Bytes that this process may take, the front end or an engine: as ``settings`` say, or by the machine."""
    if settings.text_memory is not None:
        return settings.text_memory
    return min(machine_memory(_CONTAINER_LIMITS) // _SHARE, _MOST)


def machine_memory(limits: Iterable[Path]) -> int:
    """Bytes of memory of this machine, or what the container is allowed by the files ``limits``."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in limits:
        try:
            found.append(int(path.read_text()))
        except (OSError, ValueError):
            continue
    return min(found)
