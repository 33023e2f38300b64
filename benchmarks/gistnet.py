"""What a change of the training recipe is worth to a GistNet, seen early: minutes of training each, one yardstick.

    .venv/bin/python benchmarks/gistnet.py pooling transformer:arch=transformer,lr=1e-3
    .venv/bin/python benchmarks/gistnet.py --steps 50 one:scale=1 four:scale=4 eight:scale=8
    .venv/bin/python benchmarks/gistnet.py --minutes 4 --threads 1 kl hidden:hidden_share=1
    .venv/bin/python benchmarks/gistnet.py --steps 2 --windows 2 pooling        # see whether it works

Each argument is NAME or NAME:KEY=VALUE,... with the keys of `megacontext train gistnet`, on top of a small recipe:
windows of 512 tokens, LOD1. A list is written 32+64+128, yes is 1. All train on the same windows, for as many steps
or as many minutes of a core.

The yardstick is how near the model's predictions come to those of the model that sees all of the text: KL to it over
held-out windows of 1,024 tokens, as a share of the KL without any gists (0: as if dropped, 1: as if shown whole), by
the number of raw tokens between the last gist and the predicted token. With few windows KL says more than the NLL of
`megacontext eval gists`, which counts in the end.
"""

import argparse
import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from megacontext_vllm.cli.eval_commands import DEFAULT_MODEL
from megacontext_vllm.corpus import token_stream
from megacontext_vllm.nets.gistnet import BLOCK, GistNet
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.gisting import make_gists
from megacontext_vllm.training.gistnet.loop import make_optimizer
from megacontext_vllm.training.gistnet.losses import ROWS_AT_ONCE
from megacontext_vllm.training.gistnet.objective import Objective
from megacontext_vllm.training.gistnet.packing import draw_packing, pack
from megacontext_vllm.training.gistnet.recipe import Recipe
from megacontext_vllm.training.gistnet.start import make_net
from megacontext_vllm.training.gistnet.windows import Windows

SMALL = Recipe(levels=1, windows=(512,), segments=(32, 64, 128), warmup=10)
WINDOW, FIRST, SEGMENT = 1024, 12, 4
"""Held-out windows in tokens; blocks before the first segment of raw text, and of a segment."""
TAILS = ((1, 8), (9, 32), (33, 96), (97, 128))


class Yardstick:
    """Share of the KL of dropping that gists save, by distance."""

    def __init__(self, base: FrozenModel, windows: np.ndarray) -> None:
        starts = range(FIRST, WINDOW // BLOCK, SEGMENT)
        segments = [(start * BLOCK, min(start + SEGMENT, WINDOW // BLOCK) * BLOCK) for start in starts]
        self._base, self._packing = base, pack(WINDOW, [(1, block) for block in range(starts[-1])], segments)
        self._objective = Objective(base, SMALL, None)
        self._tails = torch.from_numpy(self._packing.tails)
        self._texts = [self._read(torch.from_numpy(row[None]).to(base.device)) for row in windows]
        self.dropped = self._mean(None)

    def __call__(self, net: GistNet) -> list[float]:
        return [1 - shown / dropped for shown, dropped in zip(self._mean(net), self.dropped, strict=True)]

    @torch.no_grad()
    def _read(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings, and what the model makes of the whole text where something is foretold."""
        embeds = self._base.embed(ids)
        sink = self._base.embed(torch.tensor([[self._base.sink]], device=ids.device))
        states = self._base.hidden(torch.cat([sink, embeds], dim=1))
        return embeds, states[0, torch.from_numpy(self._packing.targets).to(ids.device)]

    @torch.no_grad()
    def _mean(self, net: GistNet | None) -> list[float]:
        total = torch.stack([self._divergence(embeds, whole, net) for embeds, whole in self._texts]).mean(dim=0)
        return [float(total[(self._tails >= low) & (self._tails <= high)].mean()) for low, high in TAILS]

    def _divergence(self, embeds: torch.Tensor, whole: torch.Tensor, net: GistNet | None) -> torch.Tensor:
        """KL at each target ``[n]``, on the host; without a net nothing sees the places of the gists."""
        packing = self._packing
        if net is None:
            gists = embeds.new_zeros(1, len(packing.nodes), embeds.shape[-1])
        else:
            gists = make_gists(net, embeds, packing.nodes)
        packed, positions, visible = self._objective.packed(embeds, gists, packing)
        if net is None:
            hidden = torch.from_numpy(packing.rows > WINDOW)
            visible = visible.clone()  # it may be the packing's own memory
            visible[:, hidden] = False
            visible |= torch.eye(len(visible), dtype=torch.bool, device=visible.device)
        states = self._base.hidden(packed, positions, visible)[0, torch.from_numpy(packing.places).to(embeds.device)]
        parts = []
        for start in range(0, len(states), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            right, shown = (self._base.logits(x[rows]).log_softmax(dim=-1) for x in (whole, states))
            parts.append((right.exp() * (right - shown)).sum(dim=-1))
        return torch.cat(parts).cpu()


def train(
    base: FrozenModel, recipe: Recipe, windows: Windows, steps: int, minutes: float | None, console: Console
) -> tuple[GistNet, int, float]:
    """The net after ``steps`` steps, or ``minutes`` of processor time; the steps, and the seconds that they took."""
    net, objective = make_net(base, recipe), Objective(base, recipe, None)
    optimizer = make_optimizer(torch.nn.ModuleDict({"net": net}), net, recipe)
    begun, begun_processor, step = time.monotonic(), time.process_time(), 0
    with console.status("") as status:
        while True:
            share = step / steps if minutes is None else (time.process_time() - begun_processor) / 60 / minutes
            if share >= 1:
                break
            rng = np.random.default_rng([recipe.seed, step])
            scale = min(1.0, (step + 1) / recipe.warmup)
            scale *= recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * share))
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * scale
            shares = {"raw_share": recipe.raw_share, "coarse_share": recipe.coarse_share}
            packing = draw_packing(rng, windows.length, recipe.segments, levels=recipe.levels, **shares)
            drawn = windows.draw(rng, recipe.batch)
            loss = objective(net, drawn, packing, match_hidden=share < recipe.hidden_share)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            status.update(f"step {step}, {share:.0%}")
    return net, step, time.monotonic() - begun


def parse(argument: str) -> tuple[str, Recipe]:
    name, _, changes = argument.partition(":")
    changed: dict[str, Any] = {}
    values = {field.name: getattr(SMALL, field.name) for field in dataclasses.fields(Recipe)}
    for change in filter(None, changes.split(",")):
        key, _, text = change.partition("=")
        if key not in values:
            raise SystemExit(f"{argument}: a recipe has no {key!r}, but {', '.join(values)}")
        before = values[key]
        try:
            if isinstance(before, tuple):
                changed[key] = tuple(map(int, text.split("+")))
            else:
                changed[key] = bool(int(text)) if isinstance(before, bool) else type(before)(text)
        except ValueError:
            raise SystemExit(f"{argument}: {text!r} is no {key}, which is {before!r} by default") from None
    return name, dataclasses.replace(SMALL, **changed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="NAME:KEY=VALUE,...")
    parser.add_argument("--steps", type=int, default=50, help="of 512 tokens (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="of processor time, instead of steps")
    parser.add_argument("--windows", type=int, default=14, help="held out (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    options = parser.parse_args()
    recipes = [parse(argument) for argument in options.recipes]
    if options.threads:
        torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = FrozenModel.load(DEFAULT_MODEL, torch.bfloat16, device)
    tokenizer = DEFAULT_MODEL / "tokenizer.json"
    held_out = Windows(token_stream("validation", tokenizer), WINDOW).spread(np.random.default_rng(3), options.windows)
    text, console = token_stream("train", tokenizer), Console()
    yardstick = Yardstick(base, held_out)
    shown = Table("recipe", "tokens", "seconds", *(f"{low}–{high} tokens behind" for low, high in TAILS))
    shown.add_row("KL without gists, nats", "", "", *(f"{value:.2f}" for value in yardstick.dropped))
    for name, recipe in recipes:
        windows = Windows(text, recipe.windows[0])
        net, steps, seconds = train(base, recipe, windows, options.steps, options.minutes, console)
        tokens = steps * windows.length * recipe.batch
        shown.add_row(name, f"{tokens:,}", f"{seconds:.0f}", *(f"{share:+.3f}" for share in yardstick(net)))
        console.print(f"{name}: done")
    console.print(shown)


if __name__ == "__main__":
    main()
