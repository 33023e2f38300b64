"""Where a run is: one safetensors file with weights, the optimiser's moments and, as JSON in its header, the rest."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megacontext_vllm.errors import ConfigError
from megacontext_vllm.training.gistnet.recipe import Recipe

NAME = "state.safetensors"


@dataclass
class Progress:
    """step: optimiser steps taken. tokens: of text seen. seconds: spent in training, over all sittings.

    losses  of the steps that are not in the curve yet.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    progress: Progress
    recipe: Recipe
    model_fingerprint: str
    tensors: dict[str, torch.Tensor]


def save_state(
    folder: Path,
    modules: torch.nn.ModuleDict,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    recipe: Recipe,
    model_fingerprint: bytes,
) -> None:
    """Whole or not at all. Random numbers need no state: each step draws from a generator of its own (loop.py)."""
    tensors = {f"weight/{name}": tensor.detach().cpu().contiguous() for name, tensor in modules.named_parameters()}
    names = {id(parameter): name for name, parameter in modules.named_parameters()}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            tensors[f"{key}/{names[id(parameter)]}"] = torch.as_tensor(value).detach().cpu().contiguous()
    about = {"progress": asdict(progress), "recipe": recipe.to_json(), "model": model_fingerprint.hex()}
    new = folder / f"{NAME}.new"
    save_file(tensors, new, metadata={"run": json.dumps(about)})
    os.replace(new, folder / NAME)


def read_state(folder: Path) -> Saved:
    """Raises ConfigError if there is none, or it is damaged."""
    path = folder / NAME
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {})["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        return Saved(Progress(**about["progress"]), Recipe.from_json(about["recipe"]), about["model"], tensors)
    except FileNotFoundError as error:
        raise ConfigError(f"There is no run to resume in {folder}: leave out --resume to begin one.") from error
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path} is damaged, or of another version ({error}): begin the run again, in an empty folder."
        ) from error


@torch.no_grad()
def restore(saved: Saved, modules: torch.nn.ModuleDict, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and moments back where they were; ``modules`` and ``optimizer`` are those of the same recipe."""
    for name, parameter in modules.named_parameters():
        parameter.copy_(saved.tensors[f"weight/{name}"])
        moments = {
            key: saved.tensors[f"{key}/{name}"].clone()
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"{key}/{name}" in saved.tensors
        }
        if moments:
            # The step counter stays on the host, as AdamW wants it.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
