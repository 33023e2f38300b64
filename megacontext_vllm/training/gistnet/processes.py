"""Several processes that train together, as ``accelerate launch`` starts them; or one, which needs no launching."""

import os
from collections.abc import Iterable
from typing import Any

import torch

from megacontext_vllm.errors import ConfigError


class Processes:
    """Gradients are averaged by hand rather than by DistributedDataParallel: GistNet runs once per level in a step,
    which its hooks are not made for, and a net this small gains nothing from overlapping.
    """

    def __init__(self, cpu: bool = False) -> None:
        """cpu: even where there is a GPU. Raises ConfigError if several were launched and accelerate is missing."""
        self._accelerator: Any = None
        self.rank, self.count = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() and not cpu else "cpu")
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return
        try:
            from accelerate import Accelerator  # type: ignore[import-untyped]
        except ImportError as error:
            raise ConfigError("Training in several processes needs accelerate: pip install accelerate") from error
        self._accelerator = Accelerator(cpu=cpu)
        self.device = self._accelerator.device
        self.rank, self.count = self._accelerator.process_index, self._accelerator.num_processes

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def mean_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        if self._accelerator is None:
            return
        trained = list(parameters)
        # What one process did not use, another may have.
        gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
        # All in one message: for each, everyone waits for everyone.
        mean = self._accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        for parameter, part in zip(trained, mean.split([each.numel() for each in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def agree(self, *values: float) -> tuple[float, ...]:
        """The first process' values, in all of them: clocks and signals differ."""
        if self._accelerator is None:
            return values
        from accelerate.utils import broadcast  # type: ignore[import-untyped]

        shared = broadcast(torch.tensor(values, dtype=torch.float64, device=self.device))
        return tuple(shared.tolist())

    def wait(self) -> None:
        """Until all are here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
