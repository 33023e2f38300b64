"""However it is asked: is what answers shown, for a thousand prompts in the words and forms that people and tools use?

    .venv/bin/python benchmarks/wordings.py
    .venv/bin/python benchmarks/wordings.py --only "several questions" --failures      # what is missed, and as what

``wordings.json`` has the prompts, one a line: of which kind it is, its messages with ``{doc}`` where a text of
180,000 characters of the corpus goes, the facts that are put into that text and must be shown raw, ``rivals`` that
are put in beside them, and what the text ends with. A reviewer who was asked for prompts that fail wrote them in
November 2026; the rules in ``focus/`` were made with them at hand, so that this says what is known to work, and is no
blind test. No model is asked.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from megacontext_vllm.cli.eval_commands import DEFAULT_MODEL
from megacontext_vllm.cli.progress import bar
from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.corpus import load
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.working_context import Kind

PROMPTS = Path(__file__).with_name("wordings.json")
SOURCES = ("sotu", "shakespeare", "sqlalchemy-docs", "django-code", "cmake-help", "bible-kjv", "aws-examples")
LENGTH = 180_000  # characters of a text
HEAD, TAIL = 300, 400  # at its ends nothing is planted


def texts() -> list[str]:
    """One of each source, cut at lines."""
    found = dict.fromkeys(SOURCES, "")
    for document in [*load("test"), *load("train")]:
        if document.source in found and len(found[document.source]) < LENGTH:
            found[document.source] += document.text + "\n\n"
    return [text[:LENGTH].rsplit("\n", 1)[0] for text in found.values()]


def planted(text: str, facts: list[str], rivals: list[str]) -> str:
    """``text`` with facts in its middle, and the rivals in order between its ends, each on a line of its own."""
    wanted = list(zip((0.5, 0.2, 0.8, 0.35, 0.65), facts, strict=False))
    wanted += [((number + 0.5) / len(rivals), rival) for number, rival in enumerate(rivals)]
    parts, begin = [], 0
    for depth, line in sorted(wanted):
        at = text.index("\n", HEAD + int(depth * (len(text) - HEAD - TAIL))) + 1
        parts += [text[begin:at], line + "\n"]
        begin = max(begin, at)
    return "".join([*parts, text[begin:]])


def shown(focus: Focus, tokenizer: Any, prompt: dict[str, Any], text: str, windows: list[int]) -> list[bool]:
    """For each window whether all of the prompt's facts are raw in it."""
    text = planted(text, prompt["facts"], prompt.get("rivals", [])) + prompt.get("ends", "")
    turns = [{"role": role, "content": said.replace("{doc}", text)} for role, said in prompt["messages"]]
    rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    tokens = np.array(tokenizer.encode(rendered, add_special_tokens=False, verbose=False), dtype=np.uint32)
    scored = focus.score(tokens)
    found = []
    for window in windows:
        entries = focus.allocate(scored, window, gists=False).entries
        raw = [tokens[entry.start : entry.end].tolist() if entry.kind is Kind.RAW else [] for entry in entries]
        seen = "".join(tokenizer.decode(part) if part else " [...] " for part in raw)
        found.append(all(fact in seen for fact in prompt["facts"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="its tokenizer (default: %(default)s)")
    parser.add_argument("--windows", type=int, nargs="+", default=[600, 1100], metavar="N", help="entries")
    parser.add_argument("--only", metavar="WORDS", help="kinds of prompts that have these words in their name")
    parser.add_argument("--failures", action="store_true", help="print the prompts that miss something")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts there, too")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(str(options.model))
    focus = Focus.of(tokenizer, MegaContextConfig())
    prompts = [one for one in json.loads(PROMPTS.read_text("utf-8")) if (options.only or "") in one["kind"]]
    documents, console = texts(), Console()
    counts: dict[str, list[int]] = {}
    with bar("asking") as progress:
        for done, prompt in enumerate(prompts):
            progress(done, len(prompts))
            found = shown(focus, tokenizer, prompt, documents[done % len(documents)], options.windows)
            row = counts.setdefault(prompt["kind"], [0] * (1 + len(options.windows)))
            row[:] = [row[0] + 1, *(count + one for count, one in zip(row[1:], found, strict=True))]
            if options.failures and not all(found):
                console.print(f"{prompt['kind']}: {prompt['messages'][-1][1]!r}", markup=False)
        progress(len(prompts), len(prompts))
    counts["all"] = np.sum(list(counts.values()), axis=0).tolist()
    table = Table("kind", "prompts", *(f"in {window:,}" for window in options.windows))
    for kind, row in counts.items():
        table.add_row(kind, *map(str, row))
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    main()
