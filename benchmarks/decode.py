"""What the plugin costs requests that do not need it: tokens per second of ordinary answers, and room for KV.

    .venv/bin/python benchmarks/decode.py
    .venv/bin/python benchmarks/decode.py --quick
    .venv/bin/python benchmarks/decode.py --model llama-8b --max-model-len 8192 --batches 1 32 256    # on a GPU

Engines with the same settings are up at once and asked in turn, never two of them: stock vLLM, the plugin as it is by
default, and the plugin with gists, which keeps its pool beside the KV cache and looks for gists in every step. All
answer the same short prompts, many at a time, and every answer has the same length. The engine alone: no HTTP. On a CPU
the engine that is started first is some percent slower, whichever it is: believe what also holds with --reversed.

Arguments that are not named here go to ``vllm.LLM``, as --name value, in JSON.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workload import CHARACTERS, add_arguments, describe, gpus, long_text, machine, machine_settings, progress

os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

PROMPT = 64
"""Tokens: a prefill that is soon over."""
ENGINES: dict[str, dict[str, Any] | None] = {
    "stock vLLM": None,
    "plugin": {},
    "plugin with gists": {"gist_net": "random:7"},
}


@contextmanager
def engines(options: argparse.Namespace, extra: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """``vllm.LLM`` of each kind, all on their part of the device."""
    from vllm import LLM

    arguments: dict[str, Any] = {
        "model": str(options.model),
        "max_model_len": options.max_model_len,
        "dtype": options.dtype,
        "max_num_seqs": max(options.batches),
        "enable_prefix_caching": False,
        **machine_settings(options.model, len(ENGINES)),
        **extra,
    }
    running: dict[str, Any] = {}
    try:
        for name in list(ENGINES)[:: -1 if options.reversed else 1]:
            progress.print(f"  starting {name}")
            plugin: dict[str, Any] = {}
            if (settings := ENGINES[name]) is not None:
                plugin = {"additional_config": {"megacontext": {"store": str(folder / name), **settings}}}
            running[name] = LLM(**arguments, **plugin)
        yield running
    finally:
        for engine in running.values():
            engine.llm_engine.engine_core.shutdown()


def prompts(engine: Any, count: int) -> list[dict[str, list[int]]]:
    characters = count * PROMPT * CHARACTERS
    tokens = engine.get_tokenizer().encode(long_text(characters)[0][:characters], verbose=False)
    return [{"prompt_token_ids": tokens[i * PROMPT : (i + 1) * PROMPT]} for i in range(count)]


def speed(engine: Any, asked: list[dict[str, list[int]]], tokens: int) -> float:
    """Tokens per second of the answers to all of ``asked`` at once, of ``tokens`` tokens each."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    started = time.perf_counter()
    answers = engine.generate(asked, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    made = sum(len(answer.outputs[0].token_ids) for answer in answers)
    assert made == len(asked) * tokens, f"{made} tokens of {len(asked) * tokens}"
    return made / seconds


def room(engine: Any) -> int:
    """Tokens that the KV cache has room for."""
    cache = engine.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)


def measure(running: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    speeds: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in options.batches} for name in running}
    order = list(running)
    for batch in options.batches:
        asked = prompts(running[order[0]], batch)
        for repeat in range(options.repeat + 1):
            for name in order:
                found = speed(running[name], asked, options.tokens if repeat else 8)  # at first it warms up
                if repeat:
                    speeds[name][batch].append(found)
            order.reverse()  # none is always the first
        told = ", ".join(f"{name} {statistics.median(speeds[name][batch]):.1f}" for name in running)
        progress.print(f"  {batch} at a time, tokens per second: {told}")
    return {"tokens_per_second": speeds, "kv_tokens": {name: room(engine) for name, engine in running.items()}}


def table(measured: dict[str, Any], batches: Sequence[int]) -> str:
    """Markdown. Ratios are medians of those of each round."""
    speeds, rooms = measured["tokens_per_second"], measured["kv_tokens"]
    heads = "".join(f" {batch} at a time | ÷ stock |" for batch in batches)
    lines = [f"| engine |{heads} KV cache, tokens | ÷ stock |", "|---|" + "--:|" * (2 * len(batches) + 2)]
    stock = next(iter(ENGINES))
    for name in ENGINES:
        cells = [name]
        for batch in batches:
            ratio = statistics.median(mine / base for mine, base in zip(speeds[name][batch], speeds[stock][batch]))
            cells += [f"{statistics.median(speeds[name][batch]):,.1f}", f"**{ratio:.3f}**"]
        cells += [f"{rooms[name]:,}", f"{rooms[name] / rooms[stock]:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, repeat=5)
    batches = (1, 32, 256) if gpus() else (1, 8)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=batches, metavar="N", help="answers at once (default: %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=256, metavar="N", help="of each answer (default: %(default)s)")
    parser.add_argument("--reversed", action="store_true", help="start the engines in the opposite order")
    options, extra = parser.parse_known_args()
    if options.quick:
        options.batches, options.tokens, options.repeat = options.batches[:1], 32, 1
    further = {name[2:].replace("-", "_"): json.loads(value) for name, value in zip(extra[::2], extra[1::2])}
    facts = machine()
    with (
        tempfile.TemporaryDirectory(prefix="megacontext-decode-") as name,
        engines(options, further, Path(name)) as running,
    ):
        measured = measure(running, options)
    print(f"Tokens per second, medians of {options.repeat}; {options.tokens} tokens an answer\n")
    print(table(measured, options.batches))
    print("\n" + describe(facts, options, extra))
    if options.json:
        options.json.write_text(json.dumps({"machine": facts, **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
