"""Would a ranking that is learnt from counterfactuals order blocks better than the blend of lenses does?

    .venv/bin/megacontext eval worth --split train --dtype bfloat16 --out worth        # or what is committed
    .venv/bin/python benchmarks/counterfactual.py benchmarks/results/worth-2026-11-26

``megacontext eval worth`` shows or hides one block at a time and reads the right answer again. Of two blocks of a
question of which one saves clearly more, which has more utility? Here the same is asked of what is known of a block
without its tokens, one feature at a time, and of a Bradley-Terry model of them all (Bradley & Terry 1952; a logistic
regression on differences, with an L2 penalty), fitted on some histories and tried on the others. Half is chance; what
a ranking by the evidence itself reaches says how much of it is the reader's noise. No model is read: seconds.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import expit
from transformers import AutoTokenizer

from megacontext_vllm.cli.eval_commands import DEFAULT_MODEL
from megacontext_vllm.cli.progress import bar
from megacontext_vllm.cli.worth import NAME
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import Sample
from megacontext_vllm.eval.tasks import TASKS
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.worth import DIFFERENT, Tried, ordered
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.history import History
from megacontext_vllm.tree.nodes import BLOCK

Matrix = npt.NDArray[np.float64]

_PARTS = 8
PENALTIES = (0.003, 0.03, 0.3)
BLEND = "utility, as served"


def features(focus: Focus, tokens: npt.NDArray[np.uint32], blocks: list[int]) -> list[dict[str, float]]:
    """What is known of each of ``blocks`` of a prompt (uint32 [N])."""
    scored = focus.score(tokens)
    utility = scored.utility
    history = History(tokens, focus.lens.spelling)
    found = focus.lens.find(history, scored.query)
    meaning = focus.meaning.score(history, scored.query) if focus.meaning else np.zeros_like(utility)
    parents = np.pad(utility, (0, -len(utility) % BLOCK)).reshape(-1, BLOCK).max(axis=1)  # a node has as many children
    beside = np.pad(utility, 1)
    return [
        {
            BLEND: float(utility[block]),
            "words (the lexical lens)": float(found.utility[block]),
            "share of the question's words": float(found.share[block]),
            "meaning (LensNet)": float(meaning[block]),
            "the better neighbour": float(max(beside[block], beside[block + 2])),
            "the parent": float(parents[block // BLOCK]),
            "recency": block / len(utility),
            "how many are better (negative logarithm)": -float(np.log1p((utility > utility[block]).sum())),
        }
        for block in blocks
    ]


def samples(filler: Filler, chat: ChatFormat, history: str) -> list[Sample]:
    task, length, seed = history.split("/")
    return TASKS[task].samples(filler, chat, int(length), int(seed))


def read(results: Path, filler: Filler, chat: ChatFormat, focus: Focus) -> Iterator[tuple[Tried, dict[str, float]]]:
    """What was tried, with the utility of today."""
    setting, *lines = map(json.loads, (results / NAME).read_text(encoding="utf-8").splitlines())
    assert setting["split"] == "train", "what is learnt from must not be what is judged by"
    with bar("scoring the histories") as progress:
        for done, (history, rows) in enumerate(lines):
            progress(done, len(lines))
            tried = [Tried(**row) for row in rows]
            for sample in samples(filler, chat, history):
                of_it = [one for one in tried if one.sample == sample.id]
                known = features(focus, chat.prompt(sample).tokens, [one.block for one in of_it])
                yield from ((replace(one, utility=what[BLEND]), what) for one, what in zip(of_it, known, strict=True))
        progress(len(lines), len(lines))


def pairs_of(tried: list[Tried]) -> npt.NDArray[np.int64]:
    """int64 [pairs, 2]: the better and the worse of two blocks of one question that differ clearly."""
    found = [
        (i, j)
        for i, better in enumerate(tried)
        for j, worse in enumerate(tried)
        if better.sample == worse.sample and better.gain - worse.gain > DIFFERENT
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 2)


def bradley_terry(differences: Matrix, penalty: float) -> Matrix:
    """float64 [features]: the weights of a block's strength; ``differences``: [pairs, features], better minus worse."""

    def loss(weights: Matrix) -> tuple[float, Matrix]:
        margin = differences @ weights
        slope = -(differences * expit(-margin)[:, None]).mean(axis=0) + penalty * weights
        return float(np.logaddexp(0, -margin).mean() + penalty / 2 * weights @ weights), slope

    fitted: Matrix = minimize(loss, np.zeros(differences.shape[1]), jac=True, method="L-BFGS-B").x
    return fitted


def rightly(tried: list[Tried], strength: Matrix) -> float:
    """Share of pairs ordered rightly by ``strength`` float64 [blocks]."""
    return ordered([replace(one, utility=float(value)) for one, value in zip(tried, strength, strict=True)])[0]


def across(tried: list[Tried], pairs: npt.NDArray[np.int64], values: Matrix, penalty: float) -> Matrix:
    """float64 [blocks]: the strength of each by weights fitted on other histories; values: [blocks, features]."""
    histories = sorted({one.history for one in tried})
    part = np.array([histories.index(one.history) % _PARTS for one in tried])
    normal = (values - values.mean(axis=0)) / np.maximum(values.std(axis=0), 1e-9)
    differences = normal[pairs[:, 0]] - normal[pairs[:, 1]]
    strength = np.zeros(len(tried))
    for held in range(_PARTS):
        weights = bradley_terry(differences[part[pairs[:, 0]] != held], penalty)
        strength[part == held] = normal[part == held] @ weights
    return strength


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="folder of 'megacontext eval worth', of the training split")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, metavar="DIR", help="(default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the shares there")
    options = parser.parse_args()
    if not (options.results / NAME).is_file():
        raise SystemExit(
            f"There is no {options.results / NAME}. Give the folder of: megacontext eval worth --split train --out DIR"
        )
    chat = ChatFormat(AutoTokenizer.from_pretrained(options.model, model_max_length=10**9))
    filler = Filler.from_corpus(chat.tokenizer, options.model / "tokenizer.json", split="train")
    focus = Focus.of(chat.tokenizer, MegaContextConfig())
    tried, known = map(list, zip(*read(options.results, filler, chat, focus), strict=True))
    names = list(known[0])
    values = np.array([[what[name] for name in names] for what in known])
    pairs = pairs_of(tried)
    share: dict[str, Any] = {name: rightly(tried, values[:, i]) for i, name in enumerate(names)}
    share["the evidence itself"] = rightly(tried, np.array([float(one.evidence) for one in tried]))
    everything = np.concatenate([values, values**2, values[:, :1] * values[:, 1:]], axis=1)
    for penalty in PENALTIES:
        for name, given in (("", values), (" with squares and products with the utility", everything)):
            fitted = across(tried, pairs, given, penalty)
            share[f"Bradley-Terry of all above{name}, penalty {penalty:g}"] = rightly(tried, fitted)
    table = Table("ordered by", "rightly")
    for name, of_pairs in share.items():
        table.add_row(name, f"{of_pairs:.3f}")
    console = Console()
    console.print(f"{len(tried)} blocks, {len(pairs)} pairs of blocks of a question, one clearly better")
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(share, indent=1) + "\n")


if __name__ == "__main__":
    main()
