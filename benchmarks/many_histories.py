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

from ttft import QUESTIONS, TOKENS, warm_up
from workload import (
    Prompts,
    add_arguments,
    heading,
    machine,
    plugin_server,
    request_body,
    stream,
    tell,
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
    with plugin_server(options, extra) as address:
        measured = rounds(address, options)
    tell(f"{options.histories} histories of {options.tokens:,} tokens", measured, facts, options, extra)


if __name__ == "__main__":
    main()
