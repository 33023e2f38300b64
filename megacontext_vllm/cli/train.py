"""``megacontext train``: make the nets. Only the model, its text and a folder for what comes out are asked for."""

import argparse
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from megacontext_vllm.cli.train_lensnet import add_lensnet
from megacontext_vllm.cli.training import ready_torch
from megacontext_vllm.config import default_store
from megacontext_vllm.errors import ConfigError
from megacontext_vllm.training.gistnet.recipe import Limits, Recipe

HELP = {
    "arch": "the kind of net: pooling is fast, transformer is large",
    "heads": "pooling: learned queries",
    "hidden": "pooling: width of the layer behind them",
    "layers": "transformer: layers, begun as the model's own first ones",
    "levels": "LODs to train, from LOD1 on",
    "scale": "norm of a gist, in units of a token's",
    "windows": "lengths of text in tokens; the longer ones join in later",
    "segments": "lengths of raw text behind the gists",
    "raw_share": "up to this share of blocks stays raw among the gists",
    "coarse_share": "how often a higher LOD is shown where it can be",
    "kl": "weight of the KL to the model that sees all the text",
    "nll": "weight of the NLL of the text",
    "hidden_share": "first part of the training, 0 to 1, that matches hidden states instead",
    "contrastive": "weight of telling a gist's own block from others",
    "batch": "windows at once",
    "accumulate": "batches a step",
    "lr": "highest learning rate",
    "copied_lr": "factor on it for layers that are the model's own",
    "weight_decay": "of AdamW",
    "warmup": "steps until the learning rate is whole",
    "final_lr": "what is left of the learning rate at the end, 0 to 1",
    "clip": "largest norm of the gradient",
    "seed": "of weights and windows",
    "dtype": "of the frozen model",
    "autocast": "GistNet's products in bfloat16",
    "checkpointing": "less memory, more time: activations are computed twice",
    "compile": "compile the frozen model",
}


def add_train_commands(commands: Any) -> None:
    """``commands``: the subparsers of ``megacontext``."""
    actions = commands.add_parser(
        "train",
        help="make a GistNet or a LensNet",
        description="Train the nets of MegaContext. The model itself never changes.",
    ).add_subparsers(title="nets", metavar="NET", required=True)
    gistnet = actions.add_parser(
        "gistnet",
        help="32 tokens to one gist that the frozen model can read",
        description="Train a GistNet for a model of transformers, on one GPU or the CPU; on several GPUs with "
        "'accelerate launch -m megacontext_vllm.cli train gistnet ...'. Ctrl-C saves, --resume goes on.",
        epilog="example:  megacontext train gistnet --model MODEL --out gistnet --minutes 20",
    )
    gistnet.add_argument("--model", type=Path, metavar="FOLDER", help="default: the one that 'make model' fetched")
    gistnet.add_argument("--corpus", type=Path, metavar="FOLDER", help="default: that of 'megacontext corpus fetch'")
    gistnet.add_argument("--out", type=Path, required=True, metavar="DIR", help="weights, card, curve, state")
    gistnet.add_argument("--resume", action="store_true", help="go on with the run in --out, by its own recipe")
    gistnet.add_argument(
        "--init",
        type=Path,
        metavar="PATH",
        help="begin with the weights of this GistNet: its folder, or its .safetensors file with the card beside it",
    )
    limits = gistnet.add_argument_group("when it ends: at the first of these")
    limits.add_argument("--steps", type=int, metavar="N")
    limits.add_argument("--tokens", type=int, metavar="N")
    limits.add_argument("--minutes", type=float, metavar="N", help="a run of minutes cannot be repeated exactly")
    machine = gistnet.add_argument_group("machine")
    machine.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    machine.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    looks = gistnet.add_argument_group("looking on")
    looks.add_argument(
        "--validate-every", type=int, default=100, metavar="N", help="steps; draws and saves too (default: %(default)s)"
    )
    looks.add_argument(
        "--validate-windows", type=int, default=16, metavar="N", help="of each layout (default: %(default)s; 0: none)"
    )
    _add_recipe(gistnet.add_argument_group("recipe"))
    gistnet.set_defaults(run=train_gistnet)
    add_lensnet(actions)


def _add_recipe(group: Any) -> None:
    """A flag for each field of Recipe; only those that were given are in the options, for the sake of --resume."""
    types = get_type_hints(Recipe)
    for field in fields(Recipe):
        flag, kind = "--" + field.name.replace("_", "-"), types[field.name]
        about: dict[str, Any] = {"default": argparse.SUPPRESS, "dest": f"recipe_{field.name}"}
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{HELP[field.name]} (default: {shown})"
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=HELP[field.name], **about)
        elif get_origin(kind) is tuple:
            group.add_argument(flag, type=int, nargs="+", metavar="N", help=text, **about)
        elif choices := get_args(kind):
            group.add_argument(flag, choices=choices, help=text, **about)
        else:
            group.add_argument(flag, type=kind, metavar="N", help=text, **about)


def _recipe(options: argparse.Namespace) -> Recipe:
    given = {key[len("recipe_") :]: value for key, value in vars(options).items() if key.startswith("recipe_")}
    begun: dict[str, Any] = {}
    if options.resume:
        from megacontext_vllm.training.gistnet.state import read_state

        begun = read_state(options.out).recipe.to_json()
    return Recipe.from_json(begun | given)


def train_gistnet(options: argparse.Namespace) -> int:
    limits = Limits(options.steps, options.tokens, options.minutes)
    if options.init and options.resume:
        raise ConfigError("--init begins a new run with the weights of an old one: leave out --resume, or --init.")
    torch = ready_torch(options.threads)
    from megacontext_vllm.corpus import corpus_folder, token_stream
    from megacontext_vllm.nets.checkpoints import card_of, load
    from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
    from megacontext_vllm.training.gistnet.loop import Training
    from megacontext_vllm.training.gistnet.processes import Processes
    from megacontext_vllm.training.gistnet.validation import Validation

    recipe = _recipe(options)
    processes = Processes(cpu=options.cpu)
    folder = options.model or default_store().with_name("models") / "SmolLM2-135M-Instruct"
    corpus = options.corpus or corpus_folder()
    text = token_stream("train", folder / "tokenizer.json", folder=corpus)
    base = FrozenModel.load(folder, getattr(torch, recipe.dtype), processes.device)
    validation = None
    if options.validate_windows:
        held_out = token_stream("validation", folder / "tokenizer.json", folder=corpus)
        validation = Validation(base, held_out, options.validate_windows)
    data = {"corpus": _manifest_key(corpus), "split": "train", "tokens": len(text.tokens)}
    start = load(options.init, base.dim, base.fingerprint) if options.init else None
    if start is not None:
        begun = card_of(options.init)
        data["start"] = {"gist_fingerprint": begun.gist_fingerprint, "tokens_seen": begun.tokens_seen}
    training = Training(
        base,
        text,
        recipe,
        options.out,
        start=start,
        validation=validation,
        data=data,
        processes=processes,
        resume=options.resume,
    )
    with _interruptible() as stopping, _bar(shown=processes.first) as on_step:
        card = training.run(limits, validate_every=options.validate_every, on_step=on_step, stopping=stopping)
    if processes.first:
        found = card.metrics["validation"]
        measured = "; ".join(f"{name} {each['recovered']:+.3f}" for name, each in found.items())
        print(f"{options.out}: {card.architecture} GistNet for {card.model}, {card.tokens_seen:,} tokens seen.")
        if measured:
            print(f"Recovered fraction on {options.validate_windows} validation windows: {measured}")
        print(f"To judge it: megacontext eval gists. To serve it: megacontext.gist_net = {options.out.resolve()}")
    return 0


def _manifest_key(corpus: Path) -> str:
    from megacontext_vllm.corpus.storage import STAMP

    key: str = json.loads((corpus / STAMP).read_text())["key"]
    return key


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Yields a function that says whether to stop. The first Ctrl-C asks for it, the second is a Ctrl-C."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, before)
        print("\nStopping after this step; once more to stop at once, without saving.", flush=True)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(shown: bool) -> Iterator[Any]:
    """Yields what ``Training.run`` calls after each step. Without a terminal it prints a line now and then."""
    console = Console(stderr=True)
    columns = (
        TextColumn("step {task.fields[step]:,}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %  loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
        TextColumn("{task.fields[recovered]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not (shown and console.is_terminal)) as progress:
        task = progress.add_task("training", total=1.0, step=0, loss=float("nan"), speed=0.0, recovered="")

        def on_step(report: Any) -> None:
            recovered = "  ".join(f"{name} {value:+.3f}" for name, value in report.recovered.items())
            progress.update(
                task,
                completed=min(1.0, report.share),
                step=report.step,
                loss=report.loss,
                speed=report.tokens_per_second,
                recovered=recovered,
            )
            if shown and not console.is_terminal and report.step % 50 == 1:
                console.print(
                    f"step {report.step:,}, {report.tokens:,} tokens, loss {report.loss:.3f}, "
                    f"{report.tokens_per_second:,.0f} tokens/s, {report.seconds_left:,.0f} s left, recovered: "
                    f"{recovered or '–'}",
                    highlight=False,
                )

        yield on_step
