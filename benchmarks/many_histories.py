"""First-token time of many histories that take turns, as those of many users do.

    .venv/bin/python benchmarks/many_histories.py
    .venv/bin/python benchmarks/many_histories.py --quick
    .venv/bin/python benchmarks/many_histories.py --additional-config.megacontext.text_memory 100000000

Every history is asked about once, then every one again, in the same order: the least recently used is always the next.
A second question is as quick as one about the history just asked about (the last row), as long as the server remembers
all of their texts (megacontext.text_memory).

Arguments that are not named here go to the server.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from ttft import QUESTIONS, TOKENS, warm_up
from workload import (
    Prompts,
    add_arguments,
    describe,
    heading,
    machine,
    plugin_arguments,
    progress,
    request_body,
    server,
    server_arguments,
    stream,
)

AGAIN = ("What did the treaty with Spain settle?", "How many post offices were there?")


def rounds(address: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """First tokens in seconds: of the first and second questions, and of one right behind another of its history."""
    prompts = Prompts(address, options.tokens)
    warm_up(address, prompts, [options.window, options.tokens])
    body = prompts.document(options.tokens, QUESTIONS[0]).partition("\n\n")[2]
    documents = [heading() + body for _ in range(options.histories)]
    first, second = (
        [stream(address, request_body(document, question, TOKENS)).first for document in documents]
        for question in QUESTIONS
    )
    behind = []
    for document in documents[: options.repeat]:
        for question in AGAIN:
            answer = stream(address, request_body(document, question, TOKENS))
        behind.append(answer.first)
    return {"first question": first, "second question": second, "one right behind another": behind}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=5)
    parser.add_argument("--histories", type=int, default=16, metavar="N", help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=1_000_000, metavar="N", help="of each (default: %(default)s)")
    options, extra = parser.parse_known_args()
    if options.quick:
        options.histories, options.tokens, options.repeat = 3, 100_000, 2
    facts = machine()
    with tempfile.TemporaryDirectory(prefix="megacontext-histories-") as name:
        folder = Path(name)
        arguments = [*server_arguments(options, extra), *plugin_arguments(options, folder / "store")]
        with server(options.model, folder / "server.log", arguments, progress) as address:
            measured = rounds(address, options)
    print(f"{options.histories} histories of {options.tokens:,} tokens; first token in seconds\n")
    print("| | median | longest |\n|---|--:|--:|")
    for what, seconds in measured.items():
        print(f"| {what} | {statistics.median(seconds):.2f} | {max(seconds):.2f} |")
    print("\n" + describe(facts, options, extra))
    if options.json:
        results = {"machine": facts, "arguments": extra, "seconds": measured}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
