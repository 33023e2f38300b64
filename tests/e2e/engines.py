"""What the end-to-end tests share: a handle on a running engine, sampling parameters."""

from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

from megacontext_vllm.engine.traces import read_trace
from megacontext_vllm.tree.library import namespace_of

GIST_SEED = 7
GAP = "\n[...]\n"


class Engine:
    """A vLLM engine and where its trees are."""

    def __init__(self, llm: LLM, store: Path) -> None:
        self.llm = llm
        self.store = store

    def ask(self, prompts: list[Any], params: SamplingParams | list[SamplingParams]) -> list[Any]:
        return self.llm.generate(prompts, params, use_tqdm=False)

    def trace(self, output: Any, cache_salt: str | None = None) -> dict[str, Any]:
        trace = read_trace(self.store, namespace_of(cache_salt), output.request_id)
        assert trace is not None, f"no trace of request {output.request_id}"
        return trace

    def trees(self) -> list[Path]:
        return sorted(path.parent for path in self.store.glob("trees/*/*/meta.json"))

    def metric(self, name: str) -> float:
        return sum(metric.value for metric in self.llm.get_metrics() if metric.name == name)


def greedy(max_tokens: int, **changes: Any) -> SamplingParams:
    extra = {"megacontext_trace": 1, **changes.pop("extra_args", {})}
    return SamplingParams(max_tokens=max_tokens, temperature=0, ignore_eos=True, extra_args=extra, **changes)
