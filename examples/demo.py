"""Ask a 135M model with a window of 2,048 about a document of more than 300,000 tokens, through a real vLLM server.

``make demo`` prepares everything and runs this. The client is the ordinary ``openai`` package; nothing in it knows of
MegaContext but the request for a focus trace, which shows what the model was shown.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from serving import MODEL, TEXT, default_dtype, server

QUESTIONS = (
    "Which lieutenant ascended the Mississippi to its source?",
    "When was the steamboat Caroline destroyed by an expedition from Canada?",
)
MAX_MODEL_LEN = 2048
WINDOW = 1024

console = Console()


def ask(client: OpenAI, document: str, question: str) -> tuple[str, float]:
    """Stream one answer to the terminal. Returns the response's id and the first-token time in seconds."""
    console.rule(f"[bold cyan]{escape(question)}")
    started = time.monotonic()
    first = 0.0
    response_id = ""
    usage: Any = None
    stream = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": f"{document}\n\n{question}"}],
        max_tokens=80,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"vllm_xargs": {"megacontext_trace": 1}},
    )
    for chunk in stream:
        response_id = chunk.id
        usage = chunk.usage or usage
        text = chunk.choices[0].delta.content if chunk.choices else None
        if text:
            first = first or time.monotonic() - started
            console.print(text, end="", markup=False, highlight=False, soft_wrap=True)
    total = time.monotonic() - started
    console.print()
    console.print(
        f"[green]first token after {first:.2f} s[/green], {total:.1f} s in all; "
        f"{usage.prompt_tokens:,} tokens of history, {usage.completion_tokens} tokens of answer"
    )
    return response_id, first


def show_focus(address: str, response_id: str) -> None:
    """What the model was shown of the document."""
    trace = httpx.get(f"{address}/v1/megacontext/focus/{response_id}").raise_for_status().json()
    seconds = trace["seconds"]
    console.print(
        f"The model saw {trace['working_context']:,} of {trace['history_tokens']:,} tokens "
        f"({trace['working_context'] / trace['history_tokens']:.2%}); {trace['reused_tokens']:,} were already stored. "
        f"Plan: {', '.join(f'{name} {value * 1000:.0f} ms' for name, value in seconds.items())}."
    )
    spans = runs(trace["entries"])
    best = max(spans, key=lambda span: span["score"])
    table = Table("tokens", "why", "score", "text", title="Focus: what was shown raw, in order")
    for span in spans:
        text = " ".join(span["text"].split())
        if span is not best and len(text) > 120:
            text = f"{text[:70]} … {text[-45:]}"
        style = "bold green" if span is best else None
        where = f"{span['start']:,}-{span['end']:,}"
        table.add_row(where, span["reason"], f"{span['score']:.2f}", escape(text), style=style)
    console.print(table)


def runs(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Raw entries that follow each other for the same reason, as one span with the best of their scores."""
    spans: list[dict[str, Any]] = []
    for entry in entries:
        if entry["kind"] != "raw":
            continue
        last = spans[-1] if spans else None
        if last and last["end"] == entry["start"] and last["reason"] == entry["reason"]:
            last.update(
                end=entry["end"], text=last["text"] + entry["text"], score=max(last["score"], entry["score"])
            )
        else:
            spans.append(dict(entry))
    return spans


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Options that are not listed here go to 'vllm serve', e.g. --max-num-seqs 4.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", type=Path, default=MODEL, help="folder of the model to serve")
    parser.add_argument("--document", type=Path, default=TEXT, help="plain text to ask about")
    parser.add_argument("--question", action="append", help="may be given several times; default: two about the text")
    parser.add_argument("--keep-store", type=Path, help="keep the trees in this folder instead of a temporary one")
    options, server_arguments = parser.parse_known_args()
    try:
        document = options.document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        wanted = "Give a file of plain text (--document), or, for the default one, run: make text"
        raise SystemExit(f"{options.document} cannot be read ({error}). {wanted}") from None
    console.print(
        Panel(
            f"{options.document.name}: {len(document):,} characters. The engine's window: {MAX_MODEL_LEN:,} tokens, of "
            f"which {WINDOW:,} show the history.",
            title="MegaContext for vLLM",
        )
    )
    with tempfile.TemporaryDirectory(prefix="megacontext-demo-") as folder:
        store = options.keep_store or Path(folder) / "store"
        arguments = [
            *("--plugin", "megacontext", "--served-model-name", "demo", "--max-model-len", str(MAX_MODEL_LEN)),
            *("--max-num-seqs", "16", "--enforce-eager", "--dtype", default_dtype()),
            *("--additional-config.megacontext.window", str(WINDOW)),
            *("--additional-config.megacontext.store", str(store)),
            *server_arguments,
        ]
        with server(options.model, Path(folder) / "server.log", arguments, console) as address:
            client = OpenAI(base_url=f"{address}/v1", api_key="none", timeout=600)
            times = []
            for question in options.question or QUESTIONS:
                response_id, first = ask(client, document, question)
                show_focus(address, response_id)
                times.append(first)
    console.rule()
    console.print("First-token times: " + ", ".join(f"{seconds:.2f} s" for seconds in times))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    main()
