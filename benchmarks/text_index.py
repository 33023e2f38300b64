"""Another question about a text: looked up in its index, beside going through all of the text for it.

    .venv/bin/python benchmarks/text_index.py
    .venv/bin/python benchmarks/text_index.py --lengths 65536 1000000

Both find the very same (tests/focus/test_history.py), and here it is checked again. Real text of the training split, of
all kinds; what is longer than that is the same again. The times are of the lenses alone, in one thread: from the tokens
of the prompt to the utility of each block.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer
from workload import machine, progress

from megacontext_vllm.cli.eval_commands import DEFAULT_MODEL
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.corpus import token_stream
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.text_index import TextIndex

LENGTHS = (65_536, 262_144, 1_000_000, 4_000_000, 16_000_000)
END = 4_096  # tokens of a prompt that are not indexed, as in the engine
QUESTIONS = (
    "Who destroyed the steamboat Caroline, and when was that?",
    "How are foreign keys declared between two tables?",
    "Which of the ships was wrecked on the reef?",
    "What did the king say of his daughters?",
    "Where can the timeout of a request be changed?",
    "How many shoes were mended?",
)


def questions(tokenizer: Any, text: np.ndarray) -> list[np.ndarray]:
    """The text with each question behind it, in the model's chat template: uint32."""
    template = tokenizer.apply_chat_template(
        [{"role": "user", "content": "\u2400"}], add_generation_prompt=True, tokenize=False
    )
    before, behind = template.split("\u2400")
    ends = [tokenizer.encode(f"\n\n{question}{behind}", add_special_tokens=False) for question in QUESTIONS]
    start = tokenizer.encode(before, add_special_tokens=False)
    return [np.concatenate([start, text, end]).astype(np.uint32) for end in ends]


def seconds(work: Any, times: int) -> float:
    """The least of so many."""
    least = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


def size(index: TextIndex) -> int:
    """Bytes of its arrays."""
    found, todo, seen = 0, [index], set()
    while todo:
        each: Any = todo.pop()
        if id(each) in seen or each is index.tokens:
            continue
        seen.add(id(each))
        if isinstance(each, np.ndarray):
            found += each.nbytes
        elif type(each).__module__.startswith("megacontext_vllm.focus") and "Spelling" not in type(each).__name__:
            todo += vars(each).values()
    return found + index.tokens.nbytes


def measure(focus: Focus, tokenizer: Any, stream: np.ndarray, length: int) -> dict[str, Any]:
    prompts = questions(tokenizer, np.resize(stream, length))
    cut = focus.lens.spelling.boundary(prompts[0], len(prompts[0]) - END)
    made = []
    making = seconds(lambda: made.append(focus.index_of(prompts[0][:cut])), 2)
    index = made[-1]
    through, looked_up = [], []
    for prompt in prompts:
        through.append(seconds(lambda prompt=prompt: focus.score(prompt), 2))
        looked_up.append(seconds(lambda prompt=prompt: focus.score(prompt, index), 2))
        assert np.array_equal(focus.score(prompt).utility, focus.score(prompt, index).utility), "they find the same"
    return {
        "tokens": length,
        "through": statistics.median(through),
        "looked_up": statistics.median(looked_up),
        "ratio": statistics.median(b / a for a, b in zip(through, looked_up, strict=True)),
        "making": making,
        "bytes_per_token": size(index) / cut,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="its tokenizer (default: %(default)s)")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N", help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements there, too")
    options = parser.parse_args()
    facts = machine()
    tokenizer = AutoTokenizer.from_pretrained(str(options.model))
    focus = Focus.of(tokenizer, MegaContextConfig())
    stream = token_stream("train", options.model / "tokenizer.json").tokens
    rows = []
    for length in options.lengths:
        progress.print(f"{length:,} tokens")
        rows.append(measure(focus, tokenizer, stream, length))
    table = Table("tokens", "through all of it", "looked up", "ratio", "making the index", "bytes a token")
    table.caption = f"milliseconds of one question, medians of {len(QUESTIONS)}"
    for row in rows:
        through, looked_up, making = (f"{1000 * row[name]:,.0f}" for name in ("through", "looked_up", "making"))
        cells = [f"{row['tokens']:,}", through, looked_up, f"{row['ratio']:.2f}", making]
        table.add_row(*cells, f"{row['bytes_per_token']:.0f}")
    Console(width=110).print(table)
    print(
        f"{facts['cpu']}, {facts['cores']} cores; load {facts['load_at_start'][0]} at the start. "
        f"Python {facts['python']}, numpy {np.__version__}, revision {facts['revision']}. {facts['date']}."
    )
    if options.json is not None:
        options.json.write_text(json.dumps({"machine": facts, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
