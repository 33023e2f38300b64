"""The training loop: draw, pack, step; look at the validation windows now and then; save; go on where it stopped."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.nets.card import Card
from megacontext_vllm.nets.checkpoints import save
from megacontext_vllm.nets.learned import LearnedGistNet, stored_tensors
from megacontext_vllm.nets.transformer import TransformerGistNet
from megacontext_vllm.training.gistnet.curve import Curve
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.losses import ContrastiveHead
from megacontext_vllm.training.gistnet.objective import Objective
from megacontext_vllm.training.gistnet.packing import draw_packing
from megacontext_vllm.training.gistnet.processes import Processes
from megacontext_vllm.training.gistnet.recipe import Limits, Recipe
from megacontext_vllm.training.gistnet.start import begin_with, make_net
from megacontext_vllm.training.gistnet.state import Progress, read_state, restore, save_state
from megacontext_vllm.training.gistnet.validation import Validation, describe
from megacontext_vllm.training.gistnet.windows import Windows

UNLOCKED_AT = 0.5
"""Progress at which the longest windows have joined in."""


@dataclass(frozen=True)
class Report:
    """After a step. ``share``: of the whole training, 0 to 1; ``recovered``: of the last validation, by layout."""

    share: float
    step: int
    tokens: int
    loss: float
    tokens_per_second: float
    seconds_left: float
    recovered: dict[str, float]


class Training:
    """One run, in one folder: ``gistnet.safetensors`` and its card, the curve, and the state to resume from.

    start   a trained net, of the recipe's sizes, to begin with its weights.
    data    what goes into the card about the text.
    resume  go on with the run in ``folder``, whose recipe must be this one.
    """

    def __init__(
        self,
        base: FrozenModel,
        text: TokenStream,
        recipe: Recipe,
        folder: Path,
        *,
        start: LearnedGistNet | None = None,
        validation: Validation | None = None,
        data: dict[str, Any] | None = None,
        processes: Processes | None = None,
        resume: bool = False,
    ) -> None:
        if base.limit is not None and max(recipe.windows) + 1 > base.limit:
            longest = max(recipe.windows)
            raise ConfigError(f"--windows {longest}: {base.name} has {base.limit} positions; use shorter ones.")
        self.base, self.recipe, self.folder = base, recipe, folder
        self.processes = processes or Processes(cpu=base.device.type == "cpu")
        self.validation = validation
        self.net = make_net(base, recipe)
        if start is not None:
            begin_with(self.net, start)
        self.curve = Curve(folder)
        self.progress = Progress()
        self._data = data or {}
        self._windows = [Windows(text, length) for length in sorted(recipe.windows)]
        contrast = ContrastiveHead(base.dim).to(base.device) if recipe.contrastive else None
        self._modules = torch.nn.ModuleDict({"net": self.net} | ({"contrast": contrast} if contrast else {}))
        self._objective = Objective(base, recipe, contrast)
        self._optimizer = make_optimizer(self._modules, self.net, recipe)
        self._recovered: dict[str, float] = {}
        if resume:
            self._resume()
        elif (folder / "state.safetensors").exists():
            raise ConfigError(f"{folder} holds a run already: --resume goes on with it, or give --out another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        if self.processes.first:
            self.curve.cut(self.progress.step if resume else -1)
        if recipe.checkpointing:
            base.use_checkpointing()
        if recipe.compile:
            base.compile()

    def run(
        self,
        limits: Limits,
        *,
        validate_every: int = 100,
        log_every: int = 10,
        on_step: Callable[[Report], None] = lambda report: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> Card:
        """Until a limit is reached or ``stopping`` says so; returns the card of what was saved."""
        if self.progress.step == 0:
            self._look()
        begun, before, tokens_before = time.monotonic(), self.progress.seconds, self.progress.tokens
        looking = 0.0
        while True:
            seconds, stop = self.processes.agree(before + time.monotonic() - begun - looking, float(stopping()))
            self.progress.seconds = seconds
            share = limits.progress(self.progress.step, self.progress.tokens, seconds)
            if share >= 1 or stop:
                break
            loss = self._step(share)
            spent = time.monotonic() - begun - looking
            speed = (self.progress.tokens - tokens_before) / max(spent, 1e-9)
            self.progress.losses.append(loss)
            if self.progress.step % log_every == 0:
                self._log(speed)
            share = limits.progress(self.progress.step, self.progress.tokens, before + spent)
            left = (before + spent) * (1 - share) / max(share, 1e-9)
            on_step(Report(share, self.progress.step, self.progress.tokens, loss, speed, left, self._recovered))
            if self.progress.step % validate_every == 0 and share < 1:
                since = time.monotonic()
                self._look()
                self._save_state()
                looking += time.monotonic() - since
        if not stop:
            self._look()
        self._save_state()
        return self._finish()

    def _step(self, share: float) -> float:
        """One optimiser step; returns the mean loss."""
        recipe = self.recipe
        scale = min(1.0, (self.progress.step + 1) / max(1, recipe.warmup))
        scale *= recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_lr"] * scale
        unlocked = min(len(self._windows), 1 + int(share / UNLOCKED_AT * (len(self._windows) - 1)))
        total = 0.0
        for turn in range(recipe.accumulate):
            # A generator of its own for each draw: a resumed run draws what it would have drawn.
            draw = [recipe.seed, self.progress.step, turn]
            # Of one length in all processes, or the shorter windows would wait for the longer ones.
            windows = self._windows[int(np.random.default_rng(draw).integers(unlocked))]
            rng = np.random.default_rng([*draw, self.processes.rank])
            packing = draw_packing(
                rng,
                windows.length,
                recipe.segments,
                levels=recipe.levels,
                raw_share=recipe.raw_share,
                coarse_share=recipe.coarse_share,
            )
            drawn = windows.draw(rng, recipe.batch)
            loss = self._objective(self.net, drawn, packing, match_hidden=share < recipe.hidden_share)
            (loss / recipe.accumulate).backward()
            total += float(loss.detach()) / recipe.accumulate
            self.progress.tokens += drawn.size * self.processes.count
        parameters = list(self._modules.parameters())
        self.processes.mean_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress.step += 1
        return total

    def _log(self, speed: float) -> None:
        if self.processes.first:
            mean = sum(self.progress.losses) / len(self.progress.losses)
            row = {"step": self.progress.step, "tokens": self.progress.tokens, "loss": round(mean, 6)}
            self.curve.add(row | {"seconds": round(self.progress.seconds, 1), "tokens_per_second": round(speed, 1)})
        self.progress.losses.clear()

    def _look(self) -> dict[str, dict[str, float]]:
        """Validate, note it in the curve, draw the curve."""
        described: dict[str, dict[str, float]] = {}
        if self.validation is not None and self.processes.first:
            found = self.validation(self.net)
            described = describe(found)
            self._recovered = {name: each.recovered for name, each in found.items()}
            self.curve.add({"step": self.progress.step, "tokens": self.progress.tokens, "validation": described})
        if self.processes.first:
            self.curve.draw()
        self.processes.wait()
        return described

    def _save_state(self) -> None:
        if self.processes.first:
            fingerprint = self.base.fingerprint
            save_state(self.folder, self._modules, self._optimizer, self.progress, self.recipe, fingerprint)
        self.processes.wait()

    @torch.no_grad()
    def _finish(self) -> Card:
        """Save the net, judged as it is stored: rounded to bfloat16. Its float32 weights are in the state."""
        exact = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        self.net.load_state_dict({name: tensor.float() for name, tensor in stored_tensors(self.net).items()})
        found = describe(self.validation(self.net)) if self.validation is not None and self.processes.first else {}
        card = Card(
            architecture=self.net.architecture,
            sizes=self.net.sizes,
            dim=self.net.dim,
            model=self.base.name,
            model_fingerprint=self.base.fingerprint.hex(),
            recipe=self.recipe.to_json() | {"steps": self.progress.step, "processes": self.processes.count},
            data=self._data,
            tokens_seen=self.progress.tokens,
            metrics={"validation": found, "seconds": round(self.progress.seconds, 1)},
        )
        if self.processes.first:
            card = save(self.net, self.folder, card)
            self.curve.draw()
        self.processes.wait()
        self.net.load_state_dict(exact)
        return card

    def _resume(self) -> None:
        saved = read_state(self.folder)
        if saved.model_fingerprint != self.base.fingerprint.hex():
            raise ConfigError(f"The run in {self.folder} is for another model than {self.base.name}: give its --model.")
        old, new = saved.recipe.to_json(), self.recipe.to_json()
        changed = [f"{key} {old[key]} → {new[key]}" for key in new if old[key] != new[key]]
        if changed:
            raise ConfigError(
                f"The run in {self.folder} has another recipe ({', '.join(changed)}): resume it with its own, or begin "
                "one in another folder."
            )
        restore(saved, self._modules, self._optimizer)
        self.progress = saved.progress
        checks = [row for row in self.curve.rows() if "validation" in row and row["step"] <= self.progress.step]
        self._recovered = {name: each["recovered"] for name, each in checks[-1]["validation"].items()} if checks else {}


def make_optimizer(modules: torch.nn.ModuleDict, net: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    copied = {id(parameter) for parameter in net.copied_parameters()} if isinstance(net, TransformerGistNet) else set()
    groups = []
    for is_copied in (False, True):
        for decayed in (False, True):
            chosen = [p for p in modules.parameters() if (id(p) in copied) == is_copied and (p.ndim > 1) == decayed]
            lr = recipe.lr * (recipe.copied_lr if is_copied else 1.0)
            decay = recipe.weight_decay if decayed else 0.0
            if chosen:
                groups.append({"params": chosen, "lr": lr, "base_lr": lr, "weight_decay": decay})
    return torch.optim.AdamW(groups, betas=(0.9, 0.98))
