"""Pipeline parallelism: the first stage makes a step's gists, and the last one answers for the step.

In a step that computes tokens, the last stage waits for what the first one computed. A step that only makes gists gives
it nothing to wait for: its answer would be back before the gists are there, and the scheduler would take them for
failed. So the first stage sends word when such a step is done, and the last one waits for it.
"""

from typing import Any

import torch
from vllm.distributed.parallel_state import GroupCoordinator

from megacontext_vllm.engine.step_work import ATTRIBUTE, StepWork

_TAG = 0x6D63  # apart from vLLM's own messages between the same two ranks


def only_makes_gists(scheduler_output: Any) -> bool:
    """Whether a step makes gists and computes no tokens."""
    work: StepWork | None = getattr(scheduler_output, ATTRIBUTE, None)
    return work is not None and bool(work.jobs) and not scheduler_output.total_num_scheduled_tokens


class FirstStage:
    """Sends word to the last stage of ``group``, without waiting for it to listen."""

    def __init__(self, group: GroupCoordinator) -> None:
        self._group = group
        self._word = torch.zeros(1, dtype=torch.uint8)
        self._sending: Any = None

    def done(self) -> None:
        if self._sending is not None:
            self._sending.wait()
        group = self._group
        self._sending = torch.distributed.isend(self._word, group.ranks[-1], group=group.cpu_group, tag=_TAG)


class LastStage:
    """Waits for the first stage of ``group``. A first stage that dies takes its executor, and so this wait, with it."""

    def __init__(self, group: GroupCoordinator) -> None:
        self._group = group

    def wait(self) -> None:
        group = self._group
        torch.distributed.recv(torch.zeros(1, dtype=torch.uint8), group.ranks[0], group=group.cpu_group, tag=_TAG)
