"""The weights that come with the package are whole, for the default model, and no noise to it."""

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.eval.gists.layouts import HARMLESS, NEAR_1
from megacontext_vllm.eval.gists.measure import Way
from megacontext_vllm.eval.gists.run import measure_gists
from megacontext_vllm.nets.card import read_card
from megacontext_vllm.nets.checkpoints import load
from megacontext_vllm.nets.shipped import FOLDER, find_default, find_shipped
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel


def test_there_is_a_small_gist_net_for_the_default_model(model_dir: Path) -> None:
    base = FrozenModel.load(model_dir, torch.bfloat16)
    weights = find_shipped(base.fingerprint)
    assert weights is not None and weights.parent == FOLDER and weights.stat().st_size < 20_000_000
    net, card = load(weights, base.dim, base.fingerprint), read_card(weights.with_suffix(".json"))
    assert net.trained and net.levels >= 2 and card.tokens_seen > 1_000_000 and card.licence
    assert find_default(base.fingerprint) is None, "it is not good enough to be shown unasked (docs/gistnet.md)"


def test_its_gists_are_no_noise_to_the_model(model_dir: Path, text: str) -> None:
    ids = np.array(AutoTokenizer.from_pretrained(model_dir).encode(text[:300_000]), dtype=np.uint32)
    many = next(layout for layout in HARMLESS if (layout.level, layout.gists) == (1, 64))
    documents = TokenStream(ids, np.array([0]), ["text/0"])
    report = measure_gists(
        model_dir, documents=documents, layouts=[NEAR_1, many], windows=6, makers=["GistNet", "centred mean"]
    )
    for layout in (NEAR_1.name, many.name):
        trained, start = (report.cell(layout, Way(name)) for name in ("GistNet", "centred mean"))
        assert trained is not None and start is not None
        assert trained.harm.value < 0.03 < start.harm.value, (layout, trained, start)
