"""What the workers tell the scheduler at start-up."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megacontext_vllm.errors import UnsupportedEngineError

# Where the engine core leaves the description, on VllmConfig, for the scheduler that it constructs next.
WORKERS_ATTRIBUTE = "megacontext_workers"


@dataclass(frozen=True)
class WorkerDescription:
    """Equal on every rank of a tensor-parallel group, but for the machine.

    ``embedding_digest``: 16 bytes over sampled rows of the embedding table, rounded to bfloat16 so that the serving
    type does not matter. ``gist_fingerprint`` is None where no gists are shown. ``gist_net`` says for people which net.
    ``machine``: of ``this_machine``, where the rank runs.
    """

    embedding_digest: bytes
    gist_fingerprint: bytes | None
    gist_trained: bool
    pool_pages: int
    gist_net: str = ""
    machine: str = ""


def this_machine() -> str:
    """Equal for the processes of one machine, in whatever containers, and different for those of others."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def check_reach(ranks: Sequence[WorkerDescription], here: str) -> None:
    """Every rank that shows gists reads them from the store, which is on the disk of the machine ``here``.

    Raises UnsupportedEngineError where one runs elsewhere: it would show zeros in their place.
    """
    far = [rank for rank, described in enumerate(ranks) if described.gist_fingerprint and described.machine != here]
    if far:
        raise UnsupportedEngineError(
            f"ranks {far} are on another machine than the engine's core, and cannot read gists from its store. Keep "
            'the first pipeline stage and all its tensor-parallel ranks on one, or hide spans: "gist_net": "none"'
        )
