"""vLLM's Model Runner V2 and asynchronous scheduling, which are what a GPU has by default; here without one.

Triton's interpreter computes the runner's kernels, so that a step takes a tenth of a second and answers are short.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from engines import GIST_SEED, Engine, check_gists, greedy, starter, stop
from reference import Reference
from vllm import SamplingParams
from vllm.config import CompilationMode
from vllm.sampling_params import StructuredOutputsParams

LENGTH, STEPS = 256, 12
GISTS = {"gist_net": f"random:{GIST_SEED}"}
FOLDS = {**GISTS, "window": 160, "refocus_tokens": 64, "refocus_share": 1.0}


@pytest.fixture
def start_v2(
    model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    repair: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[..., Engine]]:
    """``start_engine`` with Model Runner V2, for one test; ``repairs``: what else it needs."""
    with contextmanager(starter)(model_dir, tmp_path_factory) as start:

        def start_engine(*args: Any, repairs: tuple[str, ...] = (), **arguments: Any) -> Engine:
            repair("second_runner", *repairs)
            for name in ("VLLM_USE_V2_MODEL_RUNNER", "TRITON_INTERPRET", "TORCHDYNAMO_DISABLE"):
                monkeypatch.setenv(name, "1")
            monkeypatch.setattr("vllm.config.vllm.HAS_TRITON", True)  # this process asked long ago
            engine = start(*args, **arguments)
            config = engine.llm.llm_engine.vllm_config
            assert config.use_v2_model_runner and config.scheduler_config.async_scheduling
            return engine

        yield start_engine


def test_gists_in_a_batch_that_does_not_fit(
    start_v2: Callable[..., Engine], tiny: Path, history: list[int]
) -> None:
    """In chunks, beside prompts that fit, and preempted: as transformers says it."""
    engine = start_v2(
        {**GISTS, "window": 512},
        model=str(tiny),
        max_num_batched_tokens=256,
        max_num_seqs=8,
        num_gpu_blocks_override=36,
    )
    reference = Reference(tiny, GIST_SEED)
    long = [history, history[1000:9000], history[5000:7500]]
    short = [history[:50], history[9000:9100]]
    steps = 80
    outputs = engine.ask([*long, *short], greedy(steps, repetition_penalty=1.1))
    assert engine.metric("vllm:num_preemptions") > 0, "the KV cache was not small enough to force a preemption"
    for tokens, output in zip(long, outputs, strict=False):
        embeddings, ids = engine.shown(reference, tokens, output)
        assert list(output.outputs[0].token_ids) == reference.greedy(embeddings, ids, steps, 1.1)
    for tokens, output in zip(short, outputs[len(long) :], strict=True):
        embeddings = reference.table[tokens][None]
        assert list(output.outputs[0].token_ids) == reference.greedy(embeddings, tokens, steps, 1.1)
    first, again = (engine.ask(long[:1], greedy(STEPS))[0] for _ in range(2))
    assert again.num_cached_tokens > 0 and again.outputs[0].token_ids == first.outputs[0].token_ids


def test_answers_that_fold_and_refocus_are_those_of_the_older_runner(
    start_v2: Callable[..., Engine], start_engine: Callable[..., Engine], tiny: Path, history: list[int]
) -> None:
    pattern = StructuredOutputsParams(regex=r"([a-z]{2} [0-9]{2}, ){15}end")
    asked = {
        "fits": greedy(120),
        "repetition": greedy(120, repetition_penalty=1.1),
        "presence": greedy(120, presence_penalty=0.6, frequency_penalty=0.3),
        "structured": SamplingParams(max_tokens=400, temperature=0, structured_outputs=pattern),
    }
    prompts = [history[:150], *[history[at : at + 3000] for at in range(0, 3000 * (len(asked) - 1), 3000)]]

    def answers(start: Callable[..., Engine]) -> list[tuple[list[int], str]]:
        engine = start(FOLDS, model=str(tiny), max_model_len=LENGTH, max_num_seqs=8)
        said = [output.outputs[0] for output in engine.ask(prompts, list(asked.values()))]
        stop(engine)
        return [(list(answer.token_ids), str(answer.finish_reason)) for answer in said]

    expected = answers(start_engine)  # first, as V2's repairs stay until the end of the test
    assert answers(start_v2) == expected


@pytest.mark.parametrize("graphs", [True, False])
def test_in_cuda_graphs(
    start_v2: Callable[..., Engine],
    tiny: Path,
    history: list[int],
    monkeypatch: pytest.MonkeyPatch,
    graphs: bool,
) -> None:
    """What is captured before there is a request is launched again for one, with its own gists.

    Where the overlay is left out of a capture, as it is of a CPU's idle steps, they are not shown.
    """
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    monkeypatch.setenv("OVERLAY_IN_GRAPHS", str(int(graphs)))
    engine = start_v2(
        {**GISTS, "window": 512},
        model=str(tiny),
        repairs=("graphs",),
        max_num_batched_tokens=256,
        enforce_eager=False,
        compilation_config={
            "mode": CompilationMode.NONE,
            "cudagraph_mode": "PIECEWISE",
            "cudagraph_capture_sizes": [1, 2, 4, 8, 256],
        },
    )
    for shown in (history[:3000], history[1000:9000]):
        if graphs:
            check_gists(engine, Reference(tiny, GIST_SEED), [shown], STEPS)
        else:
            with pytest.raises(AssertionError):
                check_gists(engine, Reference(tiny, GIST_SEED), [shown], STEPS)


@pytest.mark.parametrize("split", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_several_processes(
    start_v2: Callable[..., Engine], tiny: Path, history: list[int], monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    engine = start_v2({**GISTS, "window": 512}, model=str(tiny), **{split: 2})
    check_gists(engine, Reference(tiny, GIST_SEED), [history, history[1000:9000]], STEPS)
