"""What the scheduler asks of the workers beside the forward pass, attached to each SchedulerOutput.

It travels in order with the steps, so a step that shows a gist comes after the step that filled its page. Jobs and
fills only ever refer to rows that were committed to the tree's files when the step was scheduled: every rank can read
them, whoever wrote them.
"""

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

ATTRIBUTE = "megacontext"


@dataclass(frozen=True, slots=True)
class GistJob:
    """Make the gists of nodes ``(level, start) ... (level, stop - 1)`` of one tree and put them into its file.

    ``again``: they are there already, made by an older GistNet or damaged, and are replaced; else they are appended.
    """

    tree_path: str
    level: int
    start: int
    stop: int
    tokens: npt.NDArray[np.uint32] | None  # [stop - start, 32] for LOD1; above, the children are read from the tree
    again: bool = False


@dataclass(frozen=True, slots=True)
class GistFill:
    """Copy committed ``gists`` of a file, ascending, into ``rows`` of the pool: int64 ``[n]`` each."""

    path: str
    gists: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


@dataclass(slots=True)
class StepWork:
    """Everything for one step. ``slots``: int64 [n] KV slots of gist positions; ``rows``: int32 [n] their pool rows."""

    model_fingerprint: bytes
    jobs: list[GistJob] = field(default_factory=list)
    fills: list[GistFill] = field(default_factory=list)
    slots: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    rows: npt.NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))

    def __bool__(self) -> bool:
        return bool(self.jobs or self.fills or len(self.slots))
