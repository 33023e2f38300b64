"""Several processes, as accelerate launches them, on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megacontext_vllm.training.gistnet.processes import Processes

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import conftest, numpy as np
from megacontext_vllm.corpus import TokenStream
from megacontext_vllm.training.gistnet.frozen_model import FrozenModel
from megacontext_vllm.training.gistnet.loop import Training
from megacontext_vllm.training.gistnet.processes import Processes
from megacontext_vllm.training.gistnet.recipe import Limits, Recipe

tokens = np.random.default_rng(0).integers(2, 96, 4000).astype(np.uint32)
text = TokenStream(tokens, np.array([0, 2000]), ["a/0", "b/0"])
base = FrozenModel(conftest.tiny("llama"), conftest.Tokenizer(), "tiny")
recipe = Recipe(levels=1, windows=(128,), heads=2, hidden=16, dtype="float32")
processes = Processes(cpu=True)
training = Training(base, text, recipe, Path(sys.argv[2]), processes=processes)
card = training.run(Limits(steps=3), validate_every=2, stopping=lambda: processes.rank == 1)
result = f"{processes.rank} {processes.count} {training.net.fingerprint.hex()} {card.tokens_seen}"
Path(sys.argv[2]).with_name(f"result{processes.rank}").write_text(result)
"""


def test_one_process_needs_no_launching(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    one = Processes(cpu=True)
    parameter = torch.nn.Parameter(torch.zeros(2))
    one.mean_gradients([parameter])
    one.wait()
    assert one.first and one.count == 1 and one.agree(1.5, 0.0) == (1.5, 0.0) and parameter.grad is None


@pytest.mark.slow
def test_two_processes_stay_together(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Files, since lines of two processes that share a pipe may come out as one.
    results = sorted(file.read_text().split() for file in tmp_path.glob("result*"))
    # Both took all the steps (a stop only counts in the first), on different windows, and have the same weights.
    assert [rank for rank, *_ in results] == ["0", "1"] and results[0][1:] == results[1][1:]
    assert results[0][1] == "2" and results[0][3] == str(3 * 2 * 128)
    assert (tmp_path / "out" / "gistnet.safetensors").exists()
