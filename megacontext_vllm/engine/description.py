"""What the workers tell the scheduler at start-up."""

from dataclasses import dataclass

# Where the engine core leaves the description, on VllmConfig, for the scheduler that it constructs next.
WORKERS_ATTRIBUTE = "megacontext_workers"


@dataclass(frozen=True)
class WorkerDescription:
    """Equal on every rank of a tensor-parallel group.

    ``embedding_digest``: 16 bytes over sampled rows of the embedding table, rounded to bfloat16 so that the serving
    type does not matter. ``gist_fingerprint`` is None where no gists are shown. ``gist_net`` says for people which net.
    """

    embedding_digest: bytes
    gist_fingerprint: bytes | None
    gist_trained: bool
    pool_pages: int
    gist_net: str = ""
