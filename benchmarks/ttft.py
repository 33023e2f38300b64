"""First-token time against the length of the history, beside stock vLLM with a prompt of just the window.

    .venv/bin/python benchmarks/ttft.py
    .venv/bin/python benchmarks/ttft.py --quick    # two lengths, once
    .venv/bin/python benchmarks/ttft.py --model llama-8b --max-model-len 9216 --window 8192 --full-context 32000 128000

Two servers are up at once and asked in turn, never both: stock vLLM (MEGACONTEXT_DISABLE=1), and the same with the
plugin. The plugin's server also gets a prompt of just the window, which it must leave to stock vLLM: how far that row
is from 1 is noise. A first ask has a document that the server never saw; a second ask, another question about it. With
--full-context, stock vLLM is asked about documents as long as these too, by itself, once the two have ended: what a
user has who can pay for it.

Arguments that are not named here go to both servers.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workload import (
    STOCK,
    Prompts,
    add_arguments,
    describe,
    focus_trace,
    machine,
    plugin_arguments,
    prefill_seconds,
    progress,
    request_body,
    server,
    server_arguments,
    stream,
)

QUESTIONS = (
    "When was the steamboat Caroline destroyed by an expedition from Canada?",
    "Which lieutenant ascended the Mississippi to its source?",
)
LENGTHS = (8_000, 64_000, 256_000, 1_000_000)
QUICK_LENGTHS = (8_000, 64_000)
TOKENS = 4
ROOM = 256  # positions beyond a full context, for the answer and a document that is a little longer than was asked for


def ask(address: str, document: str, question: str, *, trace: bool) -> dict[str, Any]:
    """One request: its first-token time and where that time went, in seconds."""
    body = request_body(document, question, TOKENS, trace)
    before = prefill_seconds(address)
    answer = stream(address, body)
    measured: dict[str, Any] = {
        "seconds": answer.first,
        "prompt_tokens": answer.prompt_tokens,
        "prefill": prefill_seconds(address) - before,
        "plan": 0.0,
    }
    found = focus_trace(address, answer.response_id) if trace else None
    if trace:
        assert found is not None, "a long request without a focus trace"
        steps = found["seconds"]
        measured["plan"] = sum(seconds for name, seconds in steps.items() if name != "held")
        measured |= {"steps": steps, "reused_tokens": found["reused_tokens"], "shown": found["working_context"]}
    return measured


def measure(address: str, prompts: Prompts, tokens: int, window: int) -> list[dict[str, Any]]:
    """First and second ask about a new document of so many tokens."""
    document = prompts.document(tokens, QUESTIONS[0], exact=tokens == window)
    asks = []
    for number, question in enumerate(QUESTIONS):
        measured = ask(address, document, question, trace=tokens > window)
        asks.append(measured)
        stored = measured.get("reused_tokens", 0)
        seen = number > 0 and tokens > window
        assert (stored > tokens // 2) == seen, f"ask {number + 1} of {tokens} tokens found {stored} stored"
    for measured, question in zip(asks, QUESTIONS):  # behind both: the server remembers so many texts only
        measured["tokenise"] = prompts.seconds_to_tokenise(document, question)
    first, second = (measured["seconds"] for measured in asks)
    progress.print(f"  {asks[0]['prompt_tokens']:>9,} tokens: first ask {first:.2f} s, second {second:.2f} s")
    return asks


def warm_up(address: str, prompts: Prompts, lengths: Sequence[int]) -> None:
    for tokens in lengths:
        stream(address, request_body(prompts.document(tokens, QUESTIONS[0]), QUESTIONS[0], TOKENS))


def run(stock: str, plugin: str, options: argparse.Namespace) -> tuple[list[Any], dict[int, list[Any]], str]:
    """Measurements of both servers, given by address, and what the text was."""
    window, lengths = options.window, options.lengths
    short, long = Prompts(stock, window), Prompts(plugin, max(lengths))
    progress.print("  warming up")
    warm_up(stock, short, [window])
    warm_up(plugin, long, [window, lengths[0]])
    of_stock: list[Any] = []
    of_plugin: dict[int, list[Any]] = {tokens: [] for tokens in (window, *lengths)}
    # The repeats are the outer loop, so that what else the machine does falls on all of them.
    for repeat in range(options.repeat):
        progress.print(f"  {repeat + 1} of {options.repeat}: stock vLLM")
        of_stock.append(measure(stock, short, window, window))
        progress.print(f"  {repeat + 1} of {options.repeat}: with the plugin")
        for tokens in of_plugin:
            of_plugin[tokens].append(measure(plugin, long, tokens, window))
    return of_stock, of_plugin, long.source


def full_context(address: str, options: argparse.Namespace) -> dict[int, list[Any]]:
    """Measurements of stock vLLM that is shown all of a document, by its tokens."""
    prompts = Prompts(address, max(options.full_context))
    warm_up(address, prompts, [options.window])
    progress.print("  stock vLLM, all of the document")
    return {
        tokens: [measure(address, prompts, tokens, window=tokens) for _ in range(options.repeat)]
        for tokens in options.full_context
    }


def table(stock: list[Any], plugin: dict[int, list[Any]], window: int, full: dict[int, list[Any]]) -> str:
    """Markdown; all times are medians in seconds, all ratios are to stock vLLM's first ask."""
    base = median(stock, 0, "seconds")
    lines = [
        "| prompt | first ask | ÷ stock | second ask | ÷ stock | tokenise | plan | prefill | the rest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, asks in [
        ("stock vLLM", stock),
        *((("plugin, inert" if tokens == window else "plugin"), asks) for tokens, asks in plugin.items()),
        *(("stock vLLM, full context", asks) for asks in full.values()),
    ]:
        first, second = median(asks, 0, "seconds"), median(asks, 1, "seconds")
        parts = [median(asks, 0, part) for part in ("tokenise", "plan", "prefill")]
        cells = [f"{name}, {median(asks, 0, 'prompt_tokens'):,.0f} tokens"]
        cells += [f"{first:.3f}", f"**{first / base:.2f}**", f"{second:.3f}", f"**{second / base:.2f}**"]
        cells += [f"{seconds:.3f}" for seconds in (*parts, first - sum(parts))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median(asks: list[Any], number: int, name: str) -> float:
    return float(statistics.median(pair[number][name] for pair in asks))


NOTES = """\
Seconds from sending the request to its first token at an HTTP client, medians of {repeat}; both servers were up and
asked in turn; {source}. ÷ stock: to stock vLLM's first ask, a prompt of exactly the window. Its second ask finds its
document in the prefix cache. The parts are those of the first ask. tokenise: a separate POST /tokenize (template,
tokenizer, and the ids' way back). plan: what the plugin says it took (store, score, allocate, render). prefill: vLLM's
metric. The rest: HTTP, copies, waiting."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--full-context", type=int, nargs="+", default=[], metavar="N", help="document lengths for stock vLLM alone"
    )
    options, extra = parser.parse_known_args()
    if options.quick:
        options.lengths, options.repeat = QUICK_LENGTHS, 1
    facts = machine()
    common = server_arguments(options, extra, servers=2)
    with tempfile.TemporaryDirectory(prefix="megacontext-ttft-") as name:
        folder = Path(name)
        arguments = [*common, *plugin_arguments(options, folder / "store")]
        with (
            server(options.model, folder / "stock.log", common, progress, STOCK) as stock_address,
            server(options.model, folder / "plugin.log", arguments, progress) as plugin_address,
        ):
            stock, plugin, source = run(stock_address, plugin_address, options)
        full: dict[int, list[Any]] = {}
        if options.full_context:
            longer = argparse.Namespace(**vars(options) | {"max_model_len": max(options.full_context) + ROOM})
            with server(
                options.model, folder / "full.log", server_arguments(longer, extra), progress, STOCK
            ) as address:
                full = full_context(address, options)
    print(table(stock, plugin, options.window, full))
    print("\n" + NOTES.format(repeat=options.repeat, source=source))
    print("\n" + describe(facts, options, extra))
    if options.json:
        results = {"machine": facts, "stock": stock, "plugin": plugin, "full_context": full, "source": source}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
