"""On a GPU, no step of the engine waits for the device on the plugin's account: vLLM's own check says so."""

from collections.abc import Callable

import pytest
import torch
from engines import GIST_SEED, Engine, greedy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("gist_net", ["none", f"random:{GIST_SEED}"])
def test_no_step_waits(
    start_engine: Callable[..., Engine], tokens: list[int], monkeypatch: pytest.MonkeyPatch, gist_net: str
) -> None:
    """Requests that fit, long ones with what is hidden or shown as gists, and penalties over a folded answer.

    With VLLM_GPU_SYNC_CHECK=error a worker that synchronises outside of what is allowed raises, and the engine dies.
    """
    monkeypatch.setenv("VLLM_GPU_SYNC_CHECK", "error")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")  # it is read when vLLM is imported
    engine = start_engine({"gist_net": gist_net, "window": 256}, max_model_len=512)
    history = tokens[:8_000]
    params = greedy(600, frequency_penalty=0.5, repetition_penalty=1.2)
    for asked in ([tokens[:100]], [history], [history, [*history, *tokens[9_000:9_100]], tokens[:200]]):
        for output in engine.ask(asked, params):
            assert len(output.outputs[0].token_ids) == 600
