"""What it is worth to renew the focus while an answer is said: is the fact shown that the answer needs next?

    .venv/bin/python benchmarks/refocus_recall.py
    .venv/bin/python benchmarks/refocus_recall.py --histories 2 --lengths 65536      # see whether it works

A parcel goes through seven hands, told in seven sentences of a long text; the question names the first hand and asks
for the whole way. The second look of the focus follows two sentences from there. An answer that has come to the third
hand needs the fourth sentence next, and so on. Counted: how often all of that sentence is raw in the Working Context
that was planned before the answer, and in the one that is planned with what was said so far (``refocus_tokens``). No
model is asked: the answer is the one that a reader would give who makes no mistake.
"""

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from megacontext_vllm.cli.eval_commands import DEFAULT_MODEL
from megacontext_vllm.cli.progress import bar
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.eval.prompt import ChatFormat
from megacontext_vllm.eval.sample import CHOICES, Sample
from megacontext_vllm.eval.tasks.base import Question, depths
from megacontext_vllm.eval.tasks.filler import Filler
from megacontext_vllm.eval.tasks.planted import Fact, PlantedTask
from megacontext_vllm.eval.tasks.values import FIRST_NAMES, MATERIALS, PLACES, Values
from megacontext_vllm.focus.focus import Focus, Scored
from megacontext_vllm.focus.working_context import Kind

HANDS = 7


class LongWay(PlantedTask):
    """One chain of ``HANDS`` sentences in a history."""

    name = "long_way"
    summary = "a way through many hands"

    def plan(self, values: Values, length: int, seed: int) -> tuple[list[Fact], list[Question]]:
        people = values.rng.sample(FIRST_NAMES, HANDS)
        places = values.phrases(CHOICES, MATERIALS, PLACES)
        said = [f" {people[0]} gave the parcel to {people[1]}."]
        said += [f" What {one} got went to {other}." for one, other in pairwise(people[1:])]
        said += [f" What {people[-1]} got was put in the {places[0]}."]
        asked = f"Which way did the parcel from {people[0]} go? Name everybody who had it, and where it is now."
        wrong = tuple(f" {place}" for place in places[1:])
        question = Question(asked, "", f" {places[0]}", wrong, tuple(range(HANDS)))
        # In the order of the text, which is that of ``Sample.evidence``.
        return [Fact(text, depth) for text, depth in zip(said, sorted(depths(HANDS, seed)), strict=True)], [question]


def shown(focus: Focus, scored: Scored, window: int, spans: list[tuple[int, int]]) -> list[bool]:
    """Which of ``spans``, tokens of the prompt, are raw from end to end."""
    raw = np.zeros(scored.length, dtype=np.bool_)
    for entry in focus.allocate(scored, window, gists=False).entries:
        if entry.kind is Kind.RAW:
            raw[entry.start : entry.end] = True
    return [bool(raw[start:stop].all()) for start, stop in spans]


def follow(focus: Focus, chat: ChatFormat, sample: Sample, window: int) -> tuple[list[bool], list[bool]]:
    """For each sentence after the first: whether it is shown once the answer has told those before; once, renewed."""
    prompt = chat.prompt(sample)
    spans = [(start + len(prompt.prefix), stop + len(prompt.prefix)) for start, stop in sample.evidence]
    asked = focus.score(prompt.tokens)
    once = shown(focus, asked, window, spans)
    renewed, answer = [], chat.encode("Here is the way of the parcel, one hand after the other.")
    for start, stop in sample.evidence[:-1]:
        answer = np.concatenate([answer, sample.history.tokens[start:stop]])
        everything = np.concatenate([prompt.tokens, answer])
        scored = focus.score_again(everything, asked)
        renewed.append(shown(focus, scored, window, spans)[len(renewed) + 1])
    return once[1:], renewed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="its tokenizer (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[65_536, 1_000_000], metavar="N")
    parser.add_argument("--histories", type=int, default=12, metavar="N", help="of each length (default: %(default)s)")
    parser.add_argument("--window", type=int, default=1024, metavar="N", help="entries (default: %(default)s)")
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there, too")
    options = parser.parse_args()
    chat = ChatFormat(AutoTokenizer.from_pretrained(str(options.model)))
    focus = Focus.of(chat.tokenizer, MegaContextConfig())
    filler = Filler.from_corpus(chat.tokenizer, options.model / "tokenizer.json", split=options.split)
    found: list[dict[str, Any]] = []
    work = [(length, seed) for length in options.lengths for seed in range(options.histories)]
    with bar("following") as progress:
        for done, (length, seed) in enumerate(work):
            progress(done, len(work))
            (sample,) = LongWay().samples(filler, chat, length, seed)
            once, renewed = follow(focus, chat, sample, options.window)
            found.append({"length": length, "seed": seed, "once": once, "renewed": renewed})
        progress(len(work), len(work))
    table = Table("history", "focus", *(f"no. {number}" for number in range(2, HANDS + 1)))
    for length in options.lengths:
        for kind in ("once", "renewed"):
            share = np.mean([one[kind] for one in found if one["length"] == length], axis=0)
            table.add_row(f"{length:,}", kind, *(f"{value:.2f}" for value in share))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
