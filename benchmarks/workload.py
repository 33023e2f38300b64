"""What the benchmarks have in common: prompts of a given length, streamed requests with their times, the machine."""

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from shapes import SHAPES, model_folder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
from serving import CACHE, MODEL, TEXT, default_dtype, gpus
from serving import server as server

WHOLE_TEXT = CACHE / "texts" / "state_of_the_union-all.txt"
NAME = "benchmark"
TIMEOUT = 900.0
CHARACTERS = 6  # of text kept per token that is wanted: more than any text needs
FEW = 8  # words may be put behind a document that shall have a certain length

progress = Console(stderr=True)
_serials = itertools.count(1)


def add_arguments(parser: argparse.ArgumentParser, repeat: int) -> None:
    parser.add_argument(
        "--model",
        type=lambda name: model_folder(name, MODEL),
        default=MODEL,
        metavar="FOLDER",
        help=f"of the model, or {' or '.join(SHAPES)}: random weights of that shape (default: %(default)s)",
    )
    parser.add_argument("--max-model-len", type=int, default=2048, help="the engine's positions (default: %(default)s)")
    parser.add_argument("--window", type=int, default=1024, help="Working Context in entries (default: %(default)s)")
    parser.add_argument("--dtype", default=default_dtype(), help="default on this machine: %(default)s")
    parser.add_argument("--repeat", type=int, default=repeat, help="measurements of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there, too")
    parser.add_argument("--quick", action="store_true", help="see whether it works: fewer, shorter, once")


def server_arguments(options: argparse.Namespace, extra: list[str], servers: int = 1, requests: int = 16) -> list[str]:
    """For the stock server and the plugin's alike, of which so many are up at once, each for so many requests."""
    return [
        *("--served-model-name", NAME, "--max-model-len", str(options.max_model_len), "--dtype", options.dtype),
        *("--max-num-seqs", str(requests), "--disable-uvicorn-access-log"),
        *as_flags(machine_settings(options.model, servers)),
        *extra,  # the last of several counts
    ]


def machine_settings(model: Path, engines: int) -> dict[str, Any]:
    """What vLLM has to be told here: of a GPU, each of ``engines`` gets its part; without one nothing is compiled."""
    settings = {"gpu_memory_utilization": round(0.85 / engines, 2)} if gpus() else {"enforce_eager": True}
    return settings if any(model.glob("*.safetensors")) else {**settings, "load_format": "dummy"}


def as_flags(settings: dict[str, Any]) -> list[str]:
    """Settings of ``vllm.LLM`` for the command line."""
    flags: list[str] = []
    for name, value in settings.items():
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return flags


def plugin_arguments(options: argparse.Namespace, store: Path) -> list[str]:
    return [
        *("--plugin", "megacontext", "--additional-config.megacontext.window", str(options.window)),
        *("--additional-config.megacontext.store", str(store)),
    ]


STOCK = {"MEGACONTEXT_DISABLE": "1"}


@contextmanager
def plugin_server(options: argparse.Namespace, extra: list[str]) -> Iterator[str]:
    """The address of one server with the plugin and an empty store, until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="megacontext-benchmark-") as name:
        folder = Path(name)
        arguments = [*server_arguments(options, extra), *plugin_arguments(options, folder / "store")]
        with server(options.model, folder / "server.log", arguments, progress) as address:
            yield address


def tell(
    title: str,
    seconds: dict[str, list[float]],
    facts: dict[str, Any],
    options: argparse.Namespace,
    extra: list[str],
) -> None:
    """Print medians in markdown, and write every single number where ``options.json`` says."""
    print(f"{title}; first token in seconds\n\n| | requests | median | longest |\n|---|--:|--:|--:|")
    for what, found in seconds.items():
        print(f"| {what} | {len(found)} | {statistics.median(found):.2f} | {max(found):.2f} |")
    print("\n" + describe(facts, options, extra))
    if options.json:
        results = {"machine": facts, "arguments": extra, "seconds": seconds}
        options.json.write_text(json.dumps(results, indent=1) + "\n")


# ---- the machine ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    root = Path(__file__).resolve().parent.parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    revision = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("vllm", "torch", "transformers", "megacontext-vllm")},
        "revision": revision,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def describe(facts: dict[str, Any], options: argparse.Namespace, extra: Sequence[str]) -> str:
    """The machine and the set-up in markdown; ``extra``: what else the servers were told."""
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items())
    return (
        f"{'; '.join(facts['gpus']) or 'No GPU'}; {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB. "
        f"{versions}, Python {facts['python']}, revision {facts['revision'] or 'unknown'}. {facts['date']}; load "
        f"average before the first server: {facts['load_at_start'][0]}.\n"
        f"{options.model.name}, {options.dtype}, max_model_len {options.max_model_len:,}, window {options.window:,}; "
        f"{' '.join([*as_flags(machine_settings(options.model, 1)), *extra])}."
    )


# ---- prompts --------------------------------------------------------------------------------------------------------


def long_text(characters: int) -> tuple[str, str]:
    """At least so many characters of text, and what it is."""
    if WHOLE_TEXT.exists():
        text, what = WHOLE_TEXT.read_text(encoding="utf-8"), "all State of the Union addresses"
    elif TEXT.exists():
        text, what = TEXT.read_text(encoding="utf-8"), "State of the Union addresses"
    else:
        raise SystemExit(f"{TEXT} is missing; make it with: make text")
    if len(text) >= characters:
        return text, what
    times = -(-characters // len(text))
    return "".join(f"\n\nPart {k + 1} of {times}\n\n{text}" for k in range(times)), f"{what}, repeated"


def heading(serial: int | None = None) -> str:
    """A first line that no document had before; all have as many tokens."""
    return f"Copy {next(_serials) if serial is None else serial:06d} of a collection.\n\n"


class Prompts:
    """Chat prompts cut out of one text. Lengths are counted by the server, template included."""

    def __init__(self, address: str, longest: int) -> None:
        self.address = address
        self._characters_per_token = 4.5
        self.text, self.source = long_text(longest * CHARACTERS)

    def document(self, tokens: int, question: str, *, exact: bool = False) -> str:
        """A document that nobody has seen: its first line is new. With ``question`` it has about ``tokens`` tokens.

        ``exact``: precisely so many, for prompts that must just fit.
        """
        length = int(tokens * self._characters_per_token)
        for _ in range(80 if exact else 4):
            body = self.text[: max(length, 1)].rstrip()
            # Counted under another heading of as many tokens: a server that has seen a text need not tokenise it again.
            found = self.count(heading(0) + body, question)
            missing = tokens - found
            if missing == 0 or (not exact and abs(missing) <= tokens // 100):
                return heading() + body
            if exact and 0 < missing <= FEW:  # one character more may be two tokens
                body += " so" * missing
                if self.count(heading(0) + body, question) == tokens:
                    return heading() + body
            if found > 500:
                self._characters_per_token = max(length, 1) / found
            step = int(missing * self._characters_per_token * (0.9 if exact else 1.0))
            length += step or (1 if missing > 0 else -1)
        if exact:
            raise SystemExit(f"no document of exactly {tokens} tokens could be cut; try another --window")
        return heading() + body

    def count(self, document: str, question: str) -> int:
        return int(self._tokenize(document, question)["count"])

    def seconds_to_tokenise(self, document: str, question: str) -> float:
        """Time of one ``POST /tokenize`` of such a prompt, unseen: template, tokenizer, and the answer with all ids."""
        document = heading() + document.partition("\n\n")[2]
        started = time.perf_counter()
        self._tokenize(document, question, parse=False)
        return time.perf_counter() - started

    def _tokenize(self, document: str, question: str, parse: bool = True) -> Any:
        body = {"model": NAME, "messages": messages(document, question)}
        response = httpx.post(f"{self.address}/tokenize", json=body, timeout=TIMEOUT)
        if response.is_error:
            raise SystemExit(f"/tokenize: {response.status_code} {response.text[:500]}")
        return response.json() if parse else None


def messages(document: str, question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{document}\n\n{question}"}]


def request_body(document: str, question: str, max_tokens: int, trace: bool = False) -> bytes:
    """A chat request, encoded before any clock runs. It generates ``max_tokens`` tokens, whatever the model says."""
    body: dict[str, Any] = {
        "model": NAME,
        "messages": messages(document, question),
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    if trace:
        body["vllm_xargs"] = {"megacontext_trace": 1}
    return json.dumps(body).encode()


# ---- requests -------------------------------------------------------------------------------------------------------


@dataclass
class Stream:
    """One streamed answer. ``times``: perf_counter of every event that brought tokens; ``tokens``: how many by then."""

    started: float
    response_id: str = ""
    prompt_tokens: int = 0
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    stop: bool = False  # set by whoever has seen enough: the request is then given up

    @property
    def first(self) -> float:
        """Seconds from the request to the first token."""
        return self.times[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between one event that brought tokens and the next."""
        return [after - before for before, after in itertools.pairwise(self.times)]


def stream(address: str, body: bytes, into: Stream | None = None) -> Stream:
    """Send a request and read its answer to the end. ``into``: filled while it runs, for another thread to look at."""
    answer = into if into is not None else Stream(0.0)
    answer.started = time.perf_counter()
    events = _events(address, body)
    for event in events:
        now = time.perf_counter()
        usage = event.get("usage") or {}
        answer.response_id = event["id"]
        answer.prompt_tokens = usage.get("prompt_tokens", answer.prompt_tokens)
        generated = usage.get("completion_tokens", 0)
        if event["choices"] and generated > (answer.tokens[-1] if answer.tokens else 0):
            answer.times.append(now)
            answer.tokens.append(generated)
        if answer.stop:
            events.close()
            break
    if not answer.times:
        raise SystemExit("the server streamed no token")
    return answer


def _events(address: str, body: bytes) -> Generator[dict[str, Any], None, None]:
    headers = {"Content-Type": "application/json"}
    with httpx.stream(
        "POST", f"{address}/v1/chat/completions", content=body, headers=headers, timeout=TIMEOUT
    ) as response:
        if response.is_error:
            raise SystemExit(f"the request failed: {response.status_code} {response.read()[:500]!r}")
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line[6:])
                if "error" in event:
                    raise SystemExit(f"the request failed: {event['error']}")
                yield event


def focus_trace(address: str, response_id: str) -> dict[str, Any] | None:
    """The plugin's account of a request; None for one that it left to stock vLLM."""
    for _ in range(10):  # it is written beside the answer
        response = httpx.get(f"{address}/v1/megacontext/focus/{response_id}", timeout=30)
        if response.status_code == 200:
            trace: dict[str, Any] = response.json()
            return trace
        time.sleep(0.2)
    return None


def prefill_seconds(address: str) -> float:
    """Sum over all finished requests of the time from being scheduled to the first token, as vLLM's metrics say."""
    text = httpx.get(f"{address}/metrics", timeout=30).text
    name = "vllm:request_prefill_time_seconds_sum"
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))
