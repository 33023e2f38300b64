"""What it costs to renew the focus while an answer is said: tokens/s with and without, and how often and how long it
pauses.

    .venv/bin/python benchmarks/refocus.py
    .venv/bin/python benchmarks/refocus.py --quick    # one short answer

Two servers with the plugin are up at once and asked in turn, never both: one that plans once, before the answer, and
one that looks again every --refocus-tokens. Both are asked to write at length about the same long document. A look runs
beside the decoding; a swap is a prefill of the changed Working Context, for which the reader of the stream waits.

Arguments that are not named here go to both servers.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from workload import (
    Prompts,
    add_arguments,
    describe,
    focus_trace,
    machine,
    plugin_arguments,
    progress,
    request_body,
    server,
    server_arguments,
    stream,
)

QUESTIONS = (
    "Write a long essay on what is said here about the canals, the railroads and the rivers.",
    "Retell at length what is said here about the navy, the treasury and the public lands.",
    "Write a long history of the relations with Great Britain, France, Spain and Mexico, as told here.",
)
DOCUMENT, TOKENS = 64_000, 1_800
QUICK_DOCUMENT, QUICK_TOKENS = 16_000, 300


def measure(address: str, document: str, question: str, tokens: int) -> dict[str, Any]:
    answer = stream(address, request_body(document, question, tokens, trace=True))
    assert answer.tokens[-1] == tokens, f"{answer.tokens[-1]} tokens of {tokens}"
    trace = focus_trace(address, answer.response_id)
    assert trace is not None, "a long request without a focus trace"
    return {
        "tokens": tokens,
        "seconds": answer.times[-1] - answer.times[0],
        "median_gap": statistics.median(answer.gaps),
        # A prefill of the window is longer than any step.
        "pauses": sorted(answer.gaps, reverse=True)[: trace["renewed"]],
    }


def table(once: list[dict[str, Any]], renewed: list[dict[str, Any]], every: int) -> str:
    def speed(of: list[dict[str, Any]]) -> float:
        return float(sum(one["tokens"] for one in of) / sum(one["seconds"] for one in of))

    lines = [
        "| focus | tokens | tokens/s | ÷ once | median per token | ÷ once | looks | swaps | per look | median pause |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    base = statistics.median(one["median_gap"] for one in once)
    for name, of, looks in (
        ("once", once, 0),
        (f"every {every} tokens", renewed, sum(max(one["tokens"] - 1, 0) // every for one in renewed)),
    ):
        pauses = [pause for one in of for pause in one["pauses"]]
        gap = statistics.median(one["median_gap"] for one in of)
        tokens = sum(one["tokens"] for one in of)
        cells = [name, f"{tokens:,}", f"{speed(of):.1f}", f"**{speed(of) / speed(once):.3f}**"]
        cells += [f"{gap * 1000:.0f} ms", f"{gap / base:.2f}", str(looks), str(len(pauses))]
        cells += [f"{len(pauses) / looks:.2f}" if looks else "–"]
        cells += [f"{statistics.median(pauses):.2f} s" if pauses else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=1)
    parser.set_defaults(max_model_len=4096, window=2048)
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help="of each answer (default: %(default)s)")
    parser.add_argument("--refocus-tokens", type=int, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--refocus-share", type=float, default=0.05, metavar="X", help="default: %(default)s")
    options, extra = parser.parse_known_args()
    length, questions = DOCUMENT, QUESTIONS
    if options.quick:
        length, options.tokens, questions = QUICK_DOCUMENT, QUICK_TOKENS, QUESTIONS[:1]
    facts = machine()
    common = server_arguments(options, extra, servers=2)
    every = ["--additional-config.megacontext.refocus_tokens", str(options.refocus_tokens)]
    every += ["--additional-config.megacontext.refocus_share", str(options.refocus_share)]
    once: list[dict[str, Any]] = []
    renewed: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="megacontext-refocus-") as name:
        folder = Path(name)
        settings = [[*common, *plugin_arguments(options, folder / store)] for store in ("once", "renewed")]
        with (
            server(options.model, folder / "once.log", settings[0], progress) as first,
            server(options.model, folder / "renewed.log", [*settings[1], *every], progress) as second,
        ):
            document = Prompts(first, length).document(length, questions[0])
            turns = [(first, once), (second, renewed)]
            for question in [*questions] * options.repeat:
                for address, answers in turns:
                    answers.append(measure(address, document, question, options.tokens))
                turns.reverse()  # neither is always the second
                pauses = len(renewed[-1]["pauses"])
                progress.print(f"  {once[-1]['seconds']:.1f} s, {renewed[-1]['seconds']:.1f} s with {pauses} swaps")
    print(table(once, renewed, options.refocus_tokens))
    print("\n" + describe(facts, options, extra))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "once": once, "renewed": renewed}, indent=1) + "\n")


if __name__ == "__main__":
    main()
