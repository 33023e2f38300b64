"""An answer far longer than the engine's length: its speed beside stock vLLM's, its pauses, its memory.

    .venv/bin/python benchmarks/long_answer.py
    .venv/bin/python benchmarks/long_answer.py --quick    # three folds

Two servers, one after the other, asked the same short question. Stock vLLM has to stop at --max-model-len; the plugin
goes on to --tokens. Every time the engine's positions are used up, the answer so far is folded into the history: the
request is planned anew and its Working Context prefilled, and the reader of the stream waits. A pause is the time
between the last token before and the first one after.

Arguments that are not named here go to both servers.
"""

import argparse
import json
import statistics
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil
from workload import (
    STOCK,
    Stream,
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

QUESTION = "Tell me a long story about a lighthouse keeper, with many chapters."
TOKENS, QUICK_TOKENS = 20_000, 4_600
SETTLED = 1_500  # tokens after which everything is allocated that the first fold does not need
EVERY = 5.0  # seconds between two looks at the memory


class Memory:
    """Resident MiB of all processes of a server against tokens said, looked at while ``answer`` grows."""

    def __init__(self, answer: Stream) -> None:
        self.seen: list[tuple[int, float]] = []
        self._answer, self._done = answer, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(EVERY):
            total = sum(p.memory_info().rss for p in psutil.Process().children(recursive=True))
            said = self._answer.tokens[-1] if self._answer.tokens else 0
            self.seen.append((said, total / 2**20))
            progress.print(f"  {said:>7,} tokens, {total / 2**20:,.0f} MiB")

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def measure(address: str, tokens: int, window: int, length: int, folds: bool) -> dict[str, Any]:
    answer = Stream(0.0)
    body = json.loads(request_body("", QUESTION, tokens))
    if folds:
        body["vllm_xargs"] = {"megacontext_trace": 1}
    with Memory(answer) as memory:
        stream(address, json.dumps(body).encode(), into=answer)
    assert answer.tokens[-1] == tokens, f"{answer.tokens[-1]} tokens of {tokens}"
    gaps = answer.gaps
    count = 0
    if folds:
        trace = focus_trace(address, answer.response_id)
        assert trace is not None and trace["working_context"] <= trace["window"] <= window
        # Each Working Context leaves the rest of the engine's positions to the answer, so this many folds at least.
        count = -(-(tokens + answer.prompt_tokens - length) // (length - trace["window"]))
    pauses = sorted(gaps, reverse=True)[:count]
    typical = statistics.median(gaps)
    return {
        "tokens": tokens,
        "seconds": answer.times[-1] - answer.times[0],
        "median_gap": typical,
        "pauses": pauses,
        "memory": memory.seen,
    }


def table(stock: dict[str, Any], plugin: dict[str, Any]) -> str:
    def speed(of: dict[str, Any]) -> float:
        return float(of["tokens"] / of["seconds"])

    lines = [
        "| | tokens | seconds | tokens/s | ÷ stock | median per token | ÷ stock | pauses | median pause | longest |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, of in (("stock vLLM", stock), ("plugin", plugin)):
        pauses = of["pauses"]
        lines.append(
            f"| {name} | {of['tokens']:,} | {of['seconds']:.0f} | {speed(of):.1f} | "
            f"**{speed(of) / speed(stock):.2f}** | "
            f"{of['median_gap'] * 1000:.0f} ms | {of['median_gap'] / stock['median_gap']:.2f} | {len(pauses)} | "
            + (f"{statistics.median(pauses):.2f} s | {max(pauses):.2f} s |" if pauses else "– | – |")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=1)
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help="of the answer (default: %(default)s)")
    options, extra = parser.parse_known_args()
    if options.quick:
        options.tokens = QUICK_TOKENS
    facts = machine()
    common = server_arguments(options, extra)
    fits = options.max_model_len - 128  # room for the question
    with tempfile.TemporaryDirectory(prefix="megacontext-long-answer-") as name:
        folder = Path(name)
        with server(options.model, folder / "stock.log", common, progress, STOCK) as address:
            stock = measure(address, fits, options.window, options.max_model_len, folds=False)
        arguments = [*common, *plugin_arguments(options, folder / "store")]
        with server(options.model, folder / "plugin.log", arguments, progress) as address:
            plugin = measure(address, options.tokens, options.window, options.max_model_len, folds=True)
    print(table(stock, plugin))
    settled = [mib for said, mib in plugin["memory"] if said >= SETTLED]
    if len(settled) > 1:
        print(
            f"\nMemory of the server's processes from {SETTLED:,} tokens on: {settled[0]:,.0f} MiB at first, "
            f"{settled[-1]:,.0f} MiB at the end, {max(settled):,.0f} MiB at most."
        )
    print("\n" + describe(facts, options, extra))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "stock": stock, "plugin": plugin}, indent=1) + "\n")


if __name__ == "__main__":
    main()
