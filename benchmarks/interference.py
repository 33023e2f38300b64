"""What a running request notices of a very long one: its inter-token times, undisturbed and while the other comes in.

    .venv/bin/python benchmarks/interference.py
    .venv/bin/python benchmarks/interference.py --quick    # a shorter history, once
    .venv/bin/python benchmarks/interference.py --streams 32 --model llama-8b --max-model-len 8192 --window 7168

Three servers, one after the other. Each streams a short request, or --streams of them, and in the middle of it gets
another one:
  stock vLLM, and a prompt of just the window;
  the plugin as it comes (unexpanded spans are hidden), and a history of --tokens;
  the plugin with an untrained GistNet, and a history of --tokens: now the engine also makes gists of all of it.

The time from sending the long request to its first token has two phases. *Ingest*, until its Working Context is
scheduled: first in the front end (HTTP, template, tokenizer), then in the engine (storing, planning, making gists).
*Prefill* of the Working Context, which is stock vLLM's own chunked prefill and to be compared with the stock server's.
Every server's times are divided by that server's undisturbed ones, taken before and after, in the same stream.

Arguments that are not named here go to all servers.
"""

import argparse
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload import (
    CHARACTERS,
    STOCK,
    Prompts,
    Stream,
    add_arguments,
    describe,
    focus_trace,
    long_text,
    machine,
    plugin_arguments,
    prefill_seconds,
    progress,
    request_body,
    server,
    server_arguments,
    stream,
)

QUESTION = "When was the steamboat Caroline destroyed by an expedition from Canada?"
SHORT = "Tell me a long story about a lighthouse keeper."
SETTLE = 1.0  # seconds after a change that count for neither side
TARGET = 2.0


class Background:
    """Short streaming requests that never end: another one follows where one is complete."""

    def __init__(self, address: str, max_tokens: int, streams: int) -> None:
        self._streams: list[list[Stream]] = [[] for _ in range(streams)]
        self._address, self._body = address, request_body("", SHORT, max_tokens)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._run, args=(following,), daemon=True) for following in self._streams
        ]

    def __enter__(self) -> "Background":
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + 120
        while not all(following and len(following[0].times) > 8 for following in self._streams):
            if not all(thread.is_alive() for thread in self._threads) or time.monotonic() > deadline:
                raise SystemExit("the short request does not stream")
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        for following in self._streams:
            following[-1].stop = True
        for thread in self._threads:
            thread.join(timeout=60)

    def _run(self, following: list[Stream]) -> None:
        while not self._stopping:
            following.append(Stream(0.0))
            stream(self._address, self._body, following[-1])

    def gaps(self) -> list[tuple[float, float, int]]:
        """(from, until, tokens that came at its end), for every wait inside a stream but its first few."""
        found = []
        for one in (one for following in self._streams for one in following):
            times, tokens = list(one.times), list(one.tokens)
            for k in range(4, min(len(times), len(tokens))):
                found.append((times[k - 1], times[k], tokens[k] - tokens[k - 1]))
        return found


@dataclass
class Phase:
    """Waits of the short request that belong to one phase, pooled over the repeats."""

    waits: list[float]
    tokens: int
    lasted: list[float]  # of the phase itself, one per repeat

    @property
    def median(self) -> float:
        return statistics.median(self.waits)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.waits)
        return ordered[round(share * (len(ordered) - 1))]


def one_run(address: str, document: str, long: bool, options: argparse.Namespace) -> dict[str, Any]:
    """One short request with another one in its middle; the waits of each phase."""
    body = request_body(document, QUESTION, 1, trace=long)
    with Background(address, options.max_model_len - 128, options.streams) as background:
        quiet_from = time.perf_counter()
        time.sleep(options.quiet_seconds)
        prefilled = prefill_seconds(address)
        other = stream(address, body)
        for _ in range(20):
            if (prefill := prefill_seconds(address) - prefilled) > 0:
                break
            time.sleep(0.1)
        time.sleep(SETTLE + options.quiet_seconds)
        quiet_until = time.perf_counter()
    sent, first = other.started, other.times[0]
    scheduled = max(first - prefill, sent)
    trace = focus_trace(address, other.response_id) if long else None
    held = min(trace["seconds"]["held"], scheduled - sent) if trace else 0.0
    bounds = {
        "front end": (sent, scheduled - held),
        "engine": (scheduled - held, scheduled),
        "ingest": (sent, scheduled),
        "prefill": (scheduled, first),
    }
    gaps = background.gaps()
    # A wait that reaches into the prefill is the prefill's; one between the two parts of the ingest is the later one's.
    taken: dict[str, list[tuple[float, int]]] = {name: [] for name in ("undisturbed", *bounds)}
    for start, end, tokens in gaps:
        if (start > quiet_from and end < sent) or (start > first + SETTLE and end < quiet_until):
            taken["undisturbed"].append((end - start, tokens))
        elif end > scheduled and start < first:
            taken["prefill"].append((end - start, tokens))
        elif end > sent and start < scheduled:
            taken["ingest"].append((end - start, tokens))
            taken["engine" if end > scheduled - held else "front end"].append((end - start, tokens))
    lasted = {name: end - start for name, (start, end) in bounds.items()}
    lasted["undisturbed"] = sum(wait for wait, _ in taken["undisturbed"]) / options.streams
    progress.print(
        f"  {other.prompt_tokens:>9,} tokens: first token after {other.first:.2f} s, of which prefill {prefill:.2f} s"
    )
    seconds = trace["seconds"] if trace else None
    return {"taken": taken, "lasted": lasted, "prompt_tokens": other.prompt_tokens, "plan": seconds}


def pool(runs: Sequence[dict[str, Any]]) -> dict[str, Phase]:
    """The phases of several runs together; those that nothing was seen of are left out."""
    phases = {}
    for name in runs[0]["taken"]:
        seen = [one for run in runs for one in run["taken"][name]]
        if seen:
            waits = [wait for wait, _ in seen]
            phases[name] = Phase(waits, sum(n for _, n in seen), [run["lasted"][name] for run in runs])
    return phases


def measure(address: str, tokens: int, long: bool, options: argparse.Namespace) -> list[dict[str, Any]]:
    prompts = Prompts(address, tokens)
    progress.print("  warming up")
    warm = prompts.document(min(tokens, 8 * options.window), QUESTION)
    stream(address, request_body(warm, QUESTION, 4))
    return [
        one_run(address, prompts.document(tokens, QUESTION, exact=not long), long, options)
        for _ in range(options.repeat)
    ]


ROWS = {
    "undisturbed": "undisturbed",
    "front end": "ingest, in the front end",
    "engine": "ingest, in the engine",
    "ingest": "**ingest, all of it**",
    "prefill": "prefill of the window",
}


def table(servers: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "| server, other request | phase | lasts | tokens/s | median | ÷ undisturbed | p95 | ÷ undisturbed | p99 "
        "| ÷ undisturbed | longest |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for title, runs in servers.items():
        phases = pool(runs)
        base = phases["undisturbed"]
        for name, shown in ROWS.items():
            if name not in phases or (runs[0]["plan"] is None and name in ("front end", "engine", "ingest")):
                continue
            phase = phases[name]
            cells = [title, shown, f"{statistics.median(phase.lasted):.2f} s", f"{phase.tokens / sum(phase.waits):.1f}"]
            for value, usual in (
                (phase.median, base.median),
                *((phase.quantile(share), base.quantile(share)) for share in (0.95, 0.99)),
            ):
                cells += [f"{value * 1000:.0f} ms", f"{value / usual:.2f}"]
            lines.append(f"| {' | '.join([*cells, f'{max(phase.waits) * 1000:.0f} ms'])} |")
    return "\n".join(lines)


def verdict(servers: dict[str, list[dict[str, Any]]]) -> str:
    said = []
    for title, runs in servers.items():
        phases = pool(runs)
        if runs[0]["plan"] is None or "ingest" not in phases:
            continue
        base, ingest = phases["undisturbed"], phases["ingest"]
        median, p95 = ingest.median / base.median, ingest.quantile(0.95) / base.quantile(0.95)
        kept = "kept" if max(median, p95) <= TARGET else "MISSED"
        said.append(f"{title}: ingest takes inter-token times to {median:.2f}× (median) and {p95:.2f}× (p95): {kept}.")
    return f"Target: at most {TARGET:.0f}×.\n" + "\n".join(said)


NOTES = """\
Waits between two events of a short stream ({streams} at once) at an HTTP client, pooled over the runs ({repeat}); p95,
p99 and longest include the client. tokens/s: of one stream. Undisturbed: {quiet:g} s before and after, in the same
stream. lasts: median length of the phase. Text: {source}."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=2)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="the long history (default: %(default)s)")
    parser.add_argument("--quiet-seconds", type=float, default=6.0, help="before and after (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=1, metavar="N", help="short requests (default: %(default)s)")
    options, extra = parser.parse_known_args()
    if options.quick:
        options.tokens, options.repeat, options.quiet_seconds = min(options.tokens, 128_000), 1, 4.0
    facts = machine()
    common = server_arguments(options, extra, requests=max(16, options.streams + 1))
    with tempfile.TemporaryDirectory(prefix="megacontext-interference-") as name:
        folder = Path(name)
        plugin = [*common, *plugin_arguments(options, folder / "store")]
        net = ("--additional-config.megacontext.gist_net", "random:7")
        gists = [*common, *plugin_arguments(options, folder / "gists"), *net]
        servers: dict[str, list[dict[str, Any]]] = {}
        for title, arguments, environment, tokens in (
            (f"stock vLLM, {options.window:,} tokens", common, STOCK, options.window),
            (f"plugin, {options.tokens:,} tokens", plugin, {}, options.tokens),
            (f"plugin with gists, {options.tokens:,} tokens", gists, {}, options.tokens),
        ):
            progress.rule(title)
            with server(options.model, folder / "server.log", arguments, progress, environment) as address:
                servers[title] = measure(address, tokens, environment is not STOCK, options)
    print(table(servers))
    print("\n" + verdict(servers))
    _, source = long_text(options.tokens * CHARACTERS)
    quiet = options.quiet_seconds
    print("\n" + NOTES.format(streams=options.streams, repeat=options.repeat, quiet=quiet, source=source))
    print("\n" + describe(facts, options, extra))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, "servers": servers}, indent=1) + "\n")


if __name__ == "__main__":
    main()
