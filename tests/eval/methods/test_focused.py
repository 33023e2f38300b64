"""MegaContext in the evaluation is MegaContext as the engine plans it, to the token."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from megacontext_vllm.config import MegaContextConfig
from megacontext_vllm.engine.description import WorkerDescription
from megacontext_vllm.engine.plan import Planner, PlanRequest
from megacontext_vllm.engine.wiring import make_planner
from megacontext_vllm.errors import ConfigError, EvaluationError
from megacontext_vllm.eval.context import Gap, Gist, Raw
from megacontext_vllm.eval.methods import make
from megacontext_vllm.eval.methods.base import Tools, View
from megacontext_vllm.eval.methods.focused import Focused
from megacontext_vllm.eval.prompt import ChatFormat, Prompt
from megacontext_vllm.eval.sample import Layout
from megacontext_vllm.nets.checkpoints import load

FACT = "\n\nThe secret number of Mira Oldenburg is 48213.\n\n"


@pytest.fixture(scope="module")
def planner(chat: ChatFormat, tmp_path_factory: pytest.TempPathFactory) -> Planner:
    settings = MegaContextConfig(store=tmp_path_factory.mktemp("store"))
    return make_planner(settings, chat.tokenizer, WorkerDescription(b"e" * 16, b"n" * 16, True, 8))


@pytest.fixture(scope="module")
def focused(tools: Tools) -> dict[str, Focused]:
    methods = make(["megacontext", "centred_mean_gists", "keyword_gists"], tools)
    return {method.name: method for method in methods if isinstance(method, Focused)}


@pytest.mark.parametrize("layout", Layout)
@pytest.mark.parametrize("budget", [256, 512, 1000])
@pytest.mark.parametrize("gists", [False, True])
def test_the_same_as_served(
    planner: Planner,
    focused: dict[str, Focused],
    chat: ChatFormat,
    ids: np.ndarray,
    prompt_of: Callable[..., Prompt],
    layout: Layout,
    budget: int,
    gists: bool,
) -> None:
    history = np.concatenate([ids[:9_000], chat.encode(FACT), ids[9_000:20_011]])
    prompt = prompt_of(history, layout)
    window = budget + prompt.overhead
    served = planner.plan(PlanRequest("r", "default", prompt.tokens.tolist(), window, False), gists=gists)
    planner.library.release(served.tree)
    method = focused["centred_mean_gists" if gists else "megacontext"]
    assert method.working_context(prompt, budget) == served.context

    context = method.select(View(prompt, method.index(history)), budget)
    assert context.cost == served.context.cost - prompt.overhead
    shown = prompt.prefix.tolist()
    for piece in context.pieces:
        if isinstance(piece, Raw):
            shown += history[piece.start : piece.stop].tolist()
        elif isinstance(piece, Gap):
            shown += context.gap
        else:
            shown.append(int(history[piece.start]))  # what the workers see in a gist's place
    assert shown + prompt.suffix.tolist() == served.worker_prompt


def test_gists_stand_for_what_is_below_them(
    focused: dict[str, Focused], ids: np.ndarray, embedding: np.ndarray, prompt_of: Callable[..., Prompt]
) -> None:
    history = ids[:40_000]
    prompt = prompt_of(history)
    counts = np.bincount(history, minlength=len(embedding))
    mean, norm = embedding.mean(axis=0), np.median(np.linalg.norm(embedding, axis=1))
    for name in ("centred_mean_gists", "keyword_gists"):
        method = focused[name]
        context = method.select(View(prompt, method.index(history)), 512)
        gists = [piece for piece in context.pieces if isinstance(piece, Gist)]
        assert {piece.stop - piece.start for piece in gists} == {32, 1024}
        for piece in gists:
            under = history[piece.start : piece.stop]
            if name == "keyword_gists":
                expected = embedding[under[counts[under].argmin()]]
            else:
                expected = embedding[under].mean(axis=0) - mean
                expected *= norm / np.linalg.norm(expected)
            assert np.allclose(piece.vector, expected, atol=1e-4) and piece.vector.dtype == np.float32
    assert all(a.stop == b.start for a, b in zip(context.pieces, context.pieces[1:])), "nothing is left out"


def test_trained_gists_are_made_from_the_bottom_up(
    tools: Tools, net: Path, ids: np.ndarray, embedding: np.ndarray, prompt_of: Callable[..., Prompt]
) -> None:
    (method,) = make(["trained_gists"], tools)
    prompt, trained = prompt_of(ids[:40_000]), load(net, 8)
    assert isinstance(method, Focused)
    context = method.select(View(prompt, None), 512)
    gists = [piece for piece in context.pieces if isinstance(piece, Gist)]
    assert {piece.stop - piece.start for piece in gists} == {32, 1024}
    for piece in gists:
        rows = torch.from_numpy(embedding[ids[piece.start : piece.stop]])
        for level in range(1, 3 if len(rows) > 32 else 2):
            rows = trained(rows.view(-1, 32, 8), level)
        assert np.allclose(piece.vector, rows[0].detach().numpy(), atol=1e-4)


def test_a_gist_net_of_another_model(chat: ChatFormat, net: Path, embedding: np.ndarray, tmp_path: Path) -> None:
    settings = MegaContextConfig(gist_net=str(net))
    with pytest.raises(ConfigError, match="another one"):
        make(["trained_gists"], Tools(chat, (1, 2), tmp_path, -embedding, settings=settings))
    with pytest.raises(ConfigError, match="no GistNet for this model"):
        make(["trained_gists"], Tools(chat, (1, 2), tmp_path, embedding))


def test_budgets_that_no_engine_would_serve(
    focused: dict[str, Focused], ids: np.ndarray, prompt_of: Callable[..., Prompt]
) -> None:
    method = focused["megacontext"]
    with pytest.raises(EvaluationError, match="larger budget"):
        method.select(View(prompt_of(ids[:5000]), None), 50)
    with pytest.raises(EvaluationError, match="not all pinned"):
        method.select(View(prompt_of(ids[:5000], Layout.TEXT), None), 100)
    assert method.select(View(prompt_of(ids[:50]), None), 50).raw == [(0, 50)]


def test_settings_are_used(chat: ChatFormat, ids: np.ndarray, prompt_of: Callable[..., Prompt], tmp_path: Path) -> None:
    settings = MegaContextConfig(head_tokens=0, tail_tokens=256, gap_marker=" ... ")
    (method,) = make(["megacontext"], Tools(chat, (1, 2), tmp_path, settings=settings))
    # A system message is pinned whatever head_tokens says, and a short first line may be what asks: here is neither.
    prompt = prompt_of(ids[100:5100], Layout.TEXT)
    assert method.focus.gap_ids == tuple(chat.encode(" ... "))  # type: ignore[attr-defined]
    with pytest.raises(EvaluationError, match="head_tokens"):
        method.select(View(prompt, None), 330)
