"""The net and the loss work: 64 blocks of real text can be learned by heart, with the real model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.objective import Objective
from megacontext_vllm.training.gistnet.packing import pack
from megacontext_vllm.training.gistnet.recipe import Recipe
from megacontext_vllm.training.gistnet.start import make_net

WINDOWS, GISTS, TARGETS = 2, 32, 64
OLDER = GISTS * 32
LR = 3e-3


@pytest.mark.slow
@pytest.mark.timeout(3600)  # a minute or two on two cores that have nothing else to do
def test_64_blocks_by_heart(model_dir: Path, text: str) -> None:
    base = FrozenModel.load(model_dir, torch.float32)  # processors without bfloat16 are far slower in it
    length = OLDER + TARGETS
    encoded = AutoTokenizer.from_pretrained(str(model_dir)).encode(text[: 40 * length], add_special_tokens=False)
    windows = np.array(encoded[: WINDOWS * length], np.int64).reshape(WINDOWS, length)
    ids = torch.from_numpy(windows)
    embeds, sink = base.embed(ids), base.embed(torch.full((WINDOWS, 1), base.sink))

    @torch.no_grad()
    def nll(shown: torch.Tensor) -> float:
        logits = base.logits(base.hidden(torch.cat([sink, shown], dim=1))[:, -TARGETS:])
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, OLDER:].flatten()))

    full, dropped = nll(embeds[:, :-1]), nll(embeds[:, OLDER:-1])
    recipe = Recipe(kl=0.0, nll=1.0, levels=1)
    net, packing = make_net(base, recipe), pack(length, [(1, i) for i in range(GISTS)], [(OLDER, length)])
    # All 64 targets, the first of which the last gist has to foretell.
    assert packing.targets.tolist() == list(range(OLDER, length))
    objective = Objective(base, recipe, None)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, betas=(0.9, 0.98), weight_decay=0.0)
    recovered = -1.0
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1.0, (step + 1) / 10)
        loss = objective(net, windows, packing)
        recovered = (dropped - float(loss.detach())) / (dropped - full)
        print(f"step {step}: recovered {recovered:+.3f}", flush=True)
        if recovered >= 0.9:
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert recovered >= 0.9
