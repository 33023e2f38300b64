"""What the end-to-end tests share: a handle on a running engine, sampling parameters, the expected answer."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import Reference
from vllm import LLM, SamplingParams

from megacontext_vllm.engine.traces import read_trace
from megacontext_vllm.tree.store.library import namespace_of

GIST_SEED = 7
SERVED_LIMIT = 1_200_000
SERVED_WINDOW = 1024
GAP = "\n[...]\n"
GPU_SHARE = "0.05"
"""Of a GPU's memory for one engine: several live side by side, and this model is small."""

two_devices = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.device_count() < 2, reason="needs two GPUs, or none"
)


@dataclass
class Engine:
    """A vLLM engine and where its trees are."""

    llm: LLM
    store: Path

    def ask(self, prompts: list[Any], params: SamplingParams | list[SamplingParams]) -> list[Any]:
        """Token ids or vLLM prompt dicts to vLLM outputs, in order."""
        wrapped = [prompt if isinstance(prompt, dict) else {"prompt_token_ids": prompt} for prompt in prompts]
        return self.llm.generate(wrapped, params, use_tqdm=False)

    def trace(self, output: Any, cache_salt: str | None = None) -> dict[str, Any]:
        trace = read_trace(self.store, namespace_of(cache_salt), output.request_id)
        assert trace is not None, f"no trace of request {output.request_id}"
        return trace

    def trees(self) -> list[Path]:
        return sorted(path.parent for path in self.store.glob("trees/*/*/meta.json"))

    def metric(self, name: str) -> float:
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == name)

    def shown(self, reference: Reference, tokens: list[int], output: Any, cache_salt: str | None = None) -> Any:
        """The embeddings and ids that the model must have been shown, by the focus trace."""
        trace = self.trace(output, cache_salt)
        assert trace["history_tokens"] == len(tokens)
        assert any(entry["kind"] == "gist" for entry in trace["entries"])
        gap_ids = self.llm.get_tokenizer().encode(GAP, add_special_tokens=False)
        embeddings, ids = reference.working_context(tokens, trace["entries"], gap_ids)
        assert embeddings.shape[1] == trace["working_context"] <= trace["window"]
        return embeddings, ids


def start(model_dir: Path, store: Path, megacontext: dict[str, Any] | None, **arguments: Any) -> Engine:
    """A small float32 engine; ``megacontext=None`` is stock vLLM."""
    if megacontext is not None:
        arguments["additional_config"] = {"megacontext": {"store": str(store), **megacontext}}
    defaults = {
        "model": str(model_dir),
        "max_model_len": 1100,
        "enforce_eager": os.environ.get("E2E_GRAPHS", "0") == "0",
        "dtype": "float32",
        "block_size": 32,
        "disable_log_stats": False,
    }
    if torch.cuda.is_available():
        defaults |= {"gpu_memory_utilization": float(GPU_SHARE)}
    return Engine(LLM(**{**defaults, **arguments}), store)


def stop(engine: Engine) -> None:
    engine.llm.llm_engine.engine_core.shutdown()


def starter(model_dir: Path, folders: pytest.TempPathFactory) -> Iterator[Callable[..., Engine]]:
    """For a fixture: ``start_engine(megacontext={...}, **engine_args)``; what it started ends with the fixture."""
    running: list[Engine] = []

    def start_engine(megacontext: dict[str, Any] | None, store: Path | None = None, **arguments: Any) -> Engine:
        engine = start(model_dir, store or folders.mktemp("store"), megacontext, **arguments)
        running.append(engine)
        return engine

    yield start_engine
    for engine in running:
        stop(engine)


def greedy(max_tokens: int | None, **changes: Any) -> SamplingParams:
    """Deterministic sampling that traces its focus."""
    changes = {"temperature": 0, "ignore_eos": True, **changes}
    return SamplingParams(max_tokens=max_tokens, extra_args={"megacontext_trace": 1}, **changes)


def check_gists(engine: Engine, reference: Reference, histories: list[list[int]], steps: int) -> None:
    """One after the other, each history has gists in its Working Context, and the answer that transformers gives."""
    for tokens in histories:
        (output,) = engine.ask([tokens], greedy(steps))
        embeddings, ids = engine.shown(reference, tokens, output)
        assert list(output.outputs[0].token_ids) == reference.greedy(embeddings, ids, steps)
