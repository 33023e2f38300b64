"""Whole runs: the loss falls, the base stays, a seed repeats itself, a stopped run goes on as if it had not been."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.eval.gists.layouts import GistLayout
from megacontext_vllm.nets.checkpoints import load
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.loop import Training
from megacontext_vllm.training.gistnet.recipe import Limits, Recipe
from megacontext_vllm.training.gistnet.validation import Validation

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
LAYOUTS = {"near": GistLayout("near", 1, 4, 32)}


def recipe(**changed: Any) -> Recipe:
    small: dict[str, Any] = {
        "levels": 1, "windows": (128, 256), "segments": (32, 64), "heads": 2, "hidden": 32, "layers": 1, "warmup": 2,
        "dtype": "float32", "batch": 2, "lr": 3e-3,
    }  # fmt: skip
    return Recipe(**(small | changed))


@pytest.fixture
def train(make_base: Callable[..., FrozenModel], documents: TokenStream, tmp_path: Path) -> Callable[..., Training]:
    def train(folder: str, chosen: Recipe, *, family: str = "llama", **options: Any) -> Training:
        base = make_base(family)
        validation = Validation(base, documents, 4, LAYOUTS)
        return Training(base, documents, chosen, tmp_path / folder, validation=validation, **options)

    return train


def curve(training: Training) -> list[dict[str, Any]]:
    """Without what the clock says."""
    clock = ("seconds", "tokens_per_second")
    return [{key: value for key, value in row.items() if key not in clock} for row in training.curve.rows()]


@pytest.mark.parametrize(
    ("family", "arch"), [*((family, "pooling") for family in FAMILIES), ("qwen3", "transformer")], indirect=["family"]
)
def test_a_short_run_reduces_the_loss_and_leaves_the_base_alone(
    family: str, arch: str, train: Callable[..., Training]
) -> None:
    training = train("run", recipe(arch=arch, windows=(128,), lr=1e-2, scale=1.0), family=family)
    before = {name: tensor.clone() for name, tensor in training.base.model.state_dict().items()}
    card = training.run(Limits(steps=30), log_every=10, validate_every=1000)
    after = training.base.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    losses = [row["loss"] for row in curve(training) if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0], losses
    assert card.tokens_seen == 30 * 2 * 128 and card.model == f"tiny {family}"


def test_a_base_in_bfloat16(
    make_base: Callable[..., FrozenModel], documents: TokenStream, tmp_path: Path
) -> None:
    base = make_base()
    base.model.bfloat16()
    chosen = recipe(dtype="bfloat16", windows=(128,), lr=1e-2, scale=1.0)
    training = Training(base, documents, chosen, tmp_path, validation=Validation(base, documents, 4, LAYOUTS))
    training.run(Limits(steps=30), log_every=10, validate_every=1000)
    losses = [row["loss"] for row in curve(training) if "loss" in row]
    assert len(losses) == 3 and losses[-1] < losses[0], losses
    assert {tensor.dtype for tensor in training.net.parameters()} == {torch.float32}, "what is trained keeps its digits"


@pytest.mark.parametrize(
    "changed", [{}, {"arch": "transformer", "hidden_share": 0.4, "contrastive": 0.1, "accumulate": 2}]
)
def test_one_seed_gives_one_curve(changed: dict[str, Any], train: Callable[..., Training]) -> None:
    runs = [train(name, recipe(**changed)) for name in ("first", "second")]
    for run in runs:
        run.run(Limits(steps=6), log_every=2, validate_every=3)
    assert curve(runs[0]) == curve(runs[1]) and len(curve(runs[0])) == 3 + 3
    assert runs[0].net.fingerprint == runs[1].net.fingerprint


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_is_an_uninterrupted_one(stop: int, train: Callable[..., Training]) -> None:
    limits, often = Limits(steps=7), {"log_every": 2, "validate_every": 3}
    whole = train("whole", recipe(contrastive=0.1))
    whole.run(limits, **often)
    first = train("parts", recipe(contrastive=0.1))
    first.run(limits, stopping=lambda: first.progress.step >= stop, **often)
    assert first.progress.step == stop and (first.folder / "gistnet.safetensors").exists()
    # As if it had been killed after that: what the state does not know of is forgotten.
    first.curve.add({"step": stop + 1, "tokens": 0, "loss": 0.0})
    second = train("parts", recipe(contrastive=0.1), resume=True)
    second.run(limits, **often)
    assert curve(second) == curve(whole)
    assert second.net.fingerprint == whole.net.fingerprint


def test_a_resumed_run_keeps_its_recipe_and_model(
    train: Callable[..., Training], make_base: Callable[..., FrozenModel], documents: TokenStream
) -> None:
    training = train("run", recipe())
    training.run(Limits(steps=1))
    with pytest.raises(ConfigError, match=r"lr 0.003 → 0.1"):
        train("run", recipe(lr=0.1), resume=True)
    with pytest.raises(ConfigError, match="--resume"):
        train("run", recipe())
    with pytest.raises(ConfigError, match="another model"):
        Training(make_base(seed=1), documents, recipe(), training.folder, resume=True)
    with pytest.raises(ConfigError, match="no run to resume"):
        train("other", recipe(), resume=True)
    (training.folder / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(ConfigError, match="damaged"):
        train("run", recipe(), resume=True)


def test_what_is_saved_can_be_loaded_for_this_model_only(train: Callable[..., Training]) -> None:
    training = train("run", recipe(), data={"corpus": "abc"})
    card = training.run(Limits(tokens=1000), validate_every=2)
    net = load(training.folder, training.base.dim, training.base.fingerprint)
    assert net.trained and net.fingerprint.hex() == card.gist_fingerprint == training.net.fingerprint.hex()
    raw = json.loads((training.folder / "gistnet.json").read_text())
    assert raw["data"] == {"corpus": "abc"} and raw["recipe"]["seed"] == 0 and raw["positions"] == "compact"
    assert raw["tokens_seen"] >= 1000 and set(raw["metrics"]["validation"]["near"]) >= {"recovered", "full", "dropped"}
    assert raw["metrics"]["validation"]["near"]["recovered"] == pytest.approx(
        training.validation(net)["near"].recovered, abs=1e-4
    )
    with pytest.raises(ConfigError, match="another one"):
        load(training.folder, training.base.dim, bytes(16))
    assert training.curve.picture.stat().st_size > 1000


def test_a_run_may_begin_where_a_trained_net_is(train: Callable[..., Training]) -> None:
    first = train("first", recipe(windows=(128,), lr=1e-2))
    first.run(Limits(steps=12), validate_every=100)
    trained = load(first.folder, first.base.dim, first.base.fingerprint)
    second = train("second", recipe(windows=(128,), lr=1e-2), start=trained)
    assert torch.equal(second.net.widen.weight, trained.widen.weight)
    card = second.run(Limits(steps=1), validate_every=100)
    begun = next(row for row in second.curve.rows() if "validation" in row)["validation"]["near"]["gisted"]
    assert begun == pytest.approx(trained_nll := first.validation(trained)["near"].gisted, abs=1e-4), trained_nll
    assert card.gist_fingerprint != trained.fingerprint.hex(), "and it goes on from there"
    with pytest.raises(ConfigError, match="heads 2 → 4"):
        train("third", recipe(heads=4), start=trained)
    with pytest.raises(ConfigError, match="architecture pooling → transformer"):
        train("fourth", recipe(arch="transformer"), start=trained)


def test_longer_windows_join_in_later(train: Callable[..., Training]) -> None:
    training = train("run", recipe(windows=(64, 128, 256)))
    seen: list[int] = []
    training.run(Limits(steps=30), validate_every=100, on_step=lambda report: seen.append(report.tokens))
    sizes = [now - before for before, now in zip([0, *seen], seen, strict=False)]
    assert set(sizes[:7]) == {2 * 64} and max(sizes) == 2 * 256


def test_a_model_with_too_few_positions(train: Callable[..., Training]) -> None:
    with pytest.raises(ConfigError, match="2048 positions"):
        train("run", recipe(windows=(2048,)))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"windows": (512, 100)}, "--windows 100; give multiples of 32, at least 64"),
        ({"windows": ()}, "it has no windows; give at least one length"),
        ({"segments": ()}, "it has no segments; give at least one length"),
        ({"segments": (0,)}, "--segments 0; give multiples of 32, at least 32"),
        ({"kl": 0}, "--kl 0 and --nll 0.0; give one of them more than 0"),
        ({"scale": 0.0}, "--scale 0.0; give more than 0"),
        ({"raw_share": 1.5}, "--raw-share 1.5; give 0 to 1"),
        ({"batch": 0}, "--batch 0; give at least 1"),
        ({"levels": 2}, "--levels 2; give --windows of more than 1024 tokens, or fewer levels"),
    ],
)
def test_recipes_that_make_no_sense(changed: dict[str, Any], says: str) -> None:
    """Only what is wrong is said, and what is allowed."""
    with pytest.raises(ConfigError) as error:
        recipe(**changed)
    assert str(error.value) == f"This recipe cannot be trained: {says}."


@pytest.mark.parametrize("limits", [{}, {"steps": 0}, {"minutes": -1}])
def test_an_end_has_to_be_given(limits: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--steps"):
        Limits(**limits)


def test_recipes_survive_json() -> None:
    assert Recipe.from_json(json.loads(json.dumps(recipe(nll=0.5).to_json()))) == recipe(nll=0.5)
