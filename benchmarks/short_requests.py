"""First-token time of short requests that come while a long text is being tokenised, stored and planned.

    .venv/bin/python benchmarks/short_requests.py
    .venv/bin/python benchmarks/short_requests.py --quick    # a shorter text
    .venv/bin/python benchmarks/short_requests.py --tokens 4000000

Short requests follow one another, at first alone, then beside one about a document that the server never saw, until
that one has its first token. What they wait for at the end of it, the prefill of its window, is stock vLLM's own.

Arguments that are not named here go to the server.
"""

import argparse
import threading
import time

from ttft import QUESTIONS, TOKENS, warm_up
from workload import (
    Prompts,
    Stream,
    add_arguments,
    machine,
    plugin_server,
    request_body,
    stream,
    tell,
)

SHORT = "Say hello to visitor number {}."
PAUSE = 0.1  # seconds from the end of a short request to the next


def short_requests(address: str, while_going: threading.Event, count: int) -> list[float]:
    """First-token times in seconds of ``count`` short requests, or of more as long as ``while_going`` is not set."""
    seconds: list[float] = []
    while len(seconds) < count or not while_going.is_set():
        seconds.append(stream(address, request_body("", SHORT.format(len(seconds)), TOKENS)).first)
        time.sleep(PAUSE)
    return seconds


def measure(address: str, options: argparse.Namespace) -> dict[str, list[float]]:
    prompts = Prompts(address, options.tokens)
    warm_up(address, prompts, [8 * options.window])
    document = prompts.document(options.tokens, QUESTIONS[0])
    over = threading.Event()
    over.set()
    alone = short_requests(address, over, options.short_requests)
    over.clear()
    long = Stream(0.0)

    def ask() -> None:
        try:
            stream(address, request_body(document, QUESTIONS[0], 1), long)
        finally:
            over.set()

    asking = threading.Thread(target=ask)
    asking.start()
    beside = short_requests(address, over, 1)
    asking.join()
    return {"alone": alone, "beside a long text": beside, "of the long text": [long.first]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=1)
    parser.add_argument("--tokens", type=int, default=1_000_000, metavar="N", help="of the text (default: %(default)s)")
    parser.add_argument("--short-requests", type=int, default=20, metavar="N", help="alone (default: %(default)s)")
    options, extra = parser.parse_known_args()
    if options.quick:
        options.tokens, options.short_requests = 200_000, 5
    facts = machine()
    with plugin_server(options, extra) as address:
        measured = measure(address, options)
    tell(f"Beside a text of {options.tokens:,} tokens", measured, facts, options, extra)


if __name__ == "__main__":
    main()
