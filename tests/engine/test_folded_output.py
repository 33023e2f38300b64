"""Penalties count what was folded of an answer: in vLLM's own batch and samplers, of both of its model runners."""

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.sample.sampler import Sampler
from vllm.v1.worker.gpu.sample import penalties
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from megacontext_vllm.engine import patches
from megacontext_vllm.engine.folded_output import FOLDED, PATCHES, Folded, remember_folded

WORDS = 20
FREQUENCY, PRESENCE = 0.25, 2.0
SAID_BEFORE = np.array([3, 3, 3, 7], dtype=np.uint32)


@pytest.fixture(autouse=True)
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    for patch in PATCHES:
        owner, name, _ = patches.resolve(patch.target)
        monkeypatch.setattr(owner, name, owner.__dict__[name])  # put back afterwards
        patches.apply(patch)


def asked(folded: np.ndarray | None, **changed: float) -> SamplingParams:
    params = SamplingParams(**{"frequency_penalty": FREQUENCY, "presence_penalty": PRESENCE, **changed})
    if folded is not None:
        remember_folded(params, folded)
    return params


def batch(*requests: tuple[list[int], list[int], SamplingParams]) -> InputBatch:
    made = InputBatch(4, 64, 64, torch.device("cpu"), WORDS, [16], [4])
    for i, (prompt, output, params) in enumerate(requests):
        made.add_request(CachedRequestState(str(i), prompt, [], params, None, ([i],), len(prompt), output))
    made.refresh_metadata()
    return made


def penalised(made: InputBatch) -> torch.Tensor:
    metadata = made.sampling_metadata
    return Sampler.apply_penalties(torch.zeros(made.num_reqs, WORDS), metadata, metadata.output_token_ids)


def test_all_of_the_answer_counts_and_only_of_that_request() -> None:
    made = batch(([1, 2], [3, 5], asked(SAID_BEFORE)), ([1, 2], [3, 5], asked(None)))
    ours, other = penalised(made)
    expected = torch.zeros(WORDS)
    expected[[3, 7, 5]] = -torch.tensor([4, 1, 1]) * FREQUENCY - PRESENCE
    assert torch.equal(ours, expected)
    expected[3], expected[7] = -FREQUENCY - PRESENCE, 0
    assert torch.equal(other, expected)


def test_what_is_said_next_and_a_preemption() -> None:
    params = asked(SAID_BEFORE)
    made = batch(([1, 2], [5], params))
    made.req_output_token_ids[0].append(7)  # as the runner does
    assert float(penalised(made)[0, 7]) == -2 * FREQUENCY - PRESENCE
    made.remove_request("0")
    # It comes back with a new list (gpu_model_runner.py: resumed_token_ids), and is as it was.
    again = batch(([1, 2], [5, 7], params))
    assert torch.equal(penalised(again), penalised(batch(([1, 2], [*SAID_BEFORE.tolist(), 5, 7], asked(None)))))


def test_rows_that_move() -> None:
    made = batch(([1], [2], asked(None)), ([1], [5], asked(SAID_BEFORE)))
    before = penalised(made)[1].clone()
    made.remove_request("0")
    made.condense()
    made.refresh_metadata()
    assert torch.equal(penalised(made)[0], before)


def test_all_at_once_is_the_same() -> None:
    """Every penalty at the same time, against vLLM with all of it as output; nothing of one row in another."""
    rng = np.random.default_rng(0)
    values = {"frequency_penalty": 0.3, "presence_penalty": -0.7, "repetition_penalty": 1.7}
    parts, wholes = [], []
    for length in (0, 1, 9):
        prompt, before, output = (rng.integers(0, WORDS, n).tolist() for n in (4 + length, 6, length))
        parts.append((prompt, output, asked(np.array(before, dtype=np.uint32), **values)))
        wholes.append((prompt, [*before, *output], asked(None, **values)))
    logits = torch.from_numpy(rng.standard_normal((3, WORDS)).astype(np.float32) * 3)
    ours, theirs = (
        Sampler.apply_penalties(logits.clone(), made.sampling_metadata, made.sampling_metadata.output_token_ids)
        for made in (batch(*parts), batch(*wholes))
    )
    torch.testing.assert_close(ours, theirs)


def test_a_token_that_is_not_known_yet() -> None:
    """Where scheduling runs ahead, vLLM has -1 in the place of the newest."""
    made, without = batch(([1], [5, -1], asked(SAID_BEFORE))), batch(([1], [5], asked(SAID_BEFORE)))
    assert torch.equal(penalised(made), penalised(without))


def test_repetition_penalty() -> None:
    made = batch(([1, 2], [5], asked(SAID_BEFORE, frequency_penalty=0, presence_penalty=0, repetition_penalty=2.0)))
    metadata = made.sampling_metadata
    logits = Sampler.apply_penalties(torch.ones(1, WORDS), metadata, metadata.output_token_ids)
    assert set(torch.nonzero(logits[0] == 0.5).flatten().tolist()) == {1, 2, 3, 5, 7}


def test_proposed_tokens() -> None:
    """N-gram speculation: each proposed position counts what was folded, what is output and the proposals before it."""
    made = batch(([1], [5], asked(None)), ([1], [5], asked(SAID_BEFORE)))
    metadata = made.sampling_metadata
    rows = RejectionSampler._combine_outputs_with_spec_tokens(metadata.output_token_ids, [[9], [3, 3]])
    logits = RejectionSampler.apply_penalties(
        torch.zeros(3, WORDS), metadata, SimpleNamespace(num_draft_tokens=[1, 2]), torch.tensor([0, 1, 1]), rows
    )
    counts = [-round((float(value) + PRESENCE) / FREQUENCY) if value else 0 for value in logits[:, 3]]
    assert counts == [0, 3, 4]


def test_without_penalties_nothing_travels() -> None:
    params = SamplingParams(temperature=1.0)
    remember_folded(params, SAID_BEFORE)
    assert not params.extra_args
    params = SamplingParams(presence_penalty=1.0, extra_args={"megacontext_trace": 1})
    remember_folded(params, SAID_BEFORE)
    assert params.extra_args == {"megacontext_trace": 1, FOLDED: Folded(SAID_BEFORE.copy())}
    there = pickle.loads(pickle.dumps(params))
    assert there == params and "7" not in repr(there.extra_args[FOLDED]), "to other workers, and in no log"
    remember_folded(there, SAID_BEFORE[:2])
    assert there != params


def second_runner(device: torch.device, params: dict[int, SamplingParams], tokens: list[list[int]]) -> Any:
    """vLLM's newer bookkeeping of penalties, with a row of tokens (two of prompt) for each request."""
    state = penalties.PenaltiesState.__new__(penalties.PenaltiesState)
    rows = torch.tensor(tokens, dtype=torch.int32, device=device)
    lengths = np.full(len(tokens), rows.shape[1], dtype=np.int32)
    state.device = device
    state.req_states = SimpleNamespace(
        prefill_len=SimpleNamespace(np=lengths, gpu=torch.tensor(lengths, device=device)),
        prompt_len=SimpleNamespace(gpu=torch.full((len(tokens),), 2, dtype=torch.int32, device=device)),
        all_token_ids=SimpleNamespace(gpu=rows),
    )
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        values = np.ones(len(tokens), dtype=np.float32)
        setattr(state, name, SimpleNamespace(np=values, copy_to_uva=lambda: None))
    state.use_penalty = np.zeros(len(tokens), dtype=bool)
    state.prompt_bin_mask = torch.zeros(len(tokens), 1, dtype=torch.int32, device=device)
    state.output_bin_counts = torch.zeros(len(tokens), WORDS, dtype=torch.int32, device=device)
    state._new_penalties_reqs = []
    for row, of in params.items():
        state.add_request(row, of)
    state.apply_staged_writes()
    return state


def _check_second_runner(device: torch.device) -> None:
    tokens = [[1, 2, 3, 5], [1, 2, 3, 5], [1, 2, 3, 3]]
    state = second_runner(device, {0: asked(None), 1: asked(SAID_BEFORE), 2: SamplingParams()}, tokens)
    expected = torch.zeros(3, WORDS, dtype=torch.int32)
    expected[0, [3, 5]] = 1
    expected[1, [3, 5, 7]] = torch.tensor([4, 1, 1], dtype=torch.int32)
    assert torch.equal(state.output_bin_counts.cpu(), expected)
    # The row goes to another request, and nothing of this one is left.
    state.add_request(1, asked(None))
    state.apply_staged_writes()
    expected[1] = expected[0]
    assert torch.equal(state.output_bin_counts.cpu(), expected)


def test_the_second_model_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Triton kernel needs a GPU, so a plain loop counts in its place."""

    def bincount(rows: Any, tokens: Any, prompt: Any, prefill: Any, mask: Any, counts: Any, longest: int) -> None:
        for row in rows.tolist():
            said = tokens[row, int(prompt[row]) : int(prefill[row])].long()
            counts[row] = torch.bincount(said, minlength=counts.shape[1]).int()

    monkeypatch.setattr(penalties, "bincount", bincount)
    monkeypatch.setattr(penalties, "async_tensor_h2d", lambda data, dtype, device: torch.tensor(data, dtype=dtype))
    _check_second_runner(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_second_model_runner_on_a_gpu() -> None:
    _check_second_runner(torch.device("cuda"))
