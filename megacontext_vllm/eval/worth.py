"""What a block is worth to the reader, beside what the lenses say of it: one block at a time is expanded or collapsed.

For a question and what is shown for it, one block that is shown is hidden, or one that is hidden is shown, and the NLL
of the right answer is read again. The difference is what that block is worth in that place: more than nothing where it
holds what is asked, less than nothing where it leads a small reader astray. A counterfactual, so it needs no label.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megacontext_vllm.eval.bootstrap import Interval, interval
from megacontext_vllm.eval.context import show_spans
from megacontext_vllm.eval.methods.megacontext import MegaContext
from megacontext_vllm.eval.prompt import Prompt
from megacontext_vllm.eval.sample import Sample, Span
from megacontext_vllm.focus.working_context import Kind
from megacontext_vllm.tree.nodes import BLOCK

if TYPE_CHECKING:  # torch: seconds, and pictures of results do without it
    from megacontext_vllm.eval.readers.transformers_reader import TransformersReader

EDGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, np.inf)
"""Of the utilities that are told apart; of a question, one block of each range is tried."""
LEAST = 20
"""Blocks of a knot of the calibration."""
DIFFERENT = 0.1
"""Nats by which two blocks of a question differ if one of them is called better."""


@dataclass(frozen=True)
class Tried:
    """One block of one question.

    utility  what the lenses say of it. shown: whether the budget had room for it.
    evidence  whether it holds a part of what answers.
    gain     nats of the whole right answer that showing it saves; negative where it costs.
    """

    task: str
    history: str
    sample: str
    block: int
    utility: float
    shown: bool
    evidence: bool
    gain: float


@dataclass(frozen=True)
class Range:
    """Blocks of about one utility. ``gain``: mean, in nats, each counted within [-1, 1]; ``sure``: 95 %, by history."""

    low: float
    high: float
    blocks: int
    utility: float
    gain: float
    sure: Interval


def try_blocks(
    method: MegaContext,
    reader: "TransformersReader",
    samples: Sequence[Sample],
    budget: int,
    rng: np.random.Generator,
    edges: Sequence[float] = EDGES,
) -> Iterator[Tried]:
    """One block of every range of utility, of every question that has such; what is pinned is left out."""
    for sample in samples:
        prompt = reader.chat.prompt(sample)
        scored = method.focus.score(prompt.tokens)
        context = method.focus.allocate(scored, budget + prompt.overhead, gists=False)
        raw = [entry for entry in context.entries if entry.kind is Kind.RAW]
        shown = {entry.index for entry in raw}
        pinned = {entry.index for entry in raw if entry.reason in ("head", "tail", "pinned")}
        blocks = _drawn(scored.utility, pinned, prompt, rng, edges)
        whole = _loss(reader, method, prompt, sample, shown)
        for block in blocks:
            other = _loss(reader, method, prompt, sample, shown ^ {block})
            yield Tried(
                task=sample.task,
                history=sample.history.id,
                sample=sample.id,
                block=block,
                utility=float(scored.utility[block]),
                shown=block in shown,
                evidence=_holds(sample.evidence, _of_history(block, prompt)),
                gain=other - whole if block in shown else whole - other,
            )


def _drawn(
    utility: npt.NDArray[np.float32],
    pinned: Iterable[int],
    prompt: Prompt,
    rng: np.random.Generator,
    edges: Sequence[float],
) -> list[int]:
    """A block of each range that has one, which are all of the history."""
    possible = np.zeros(len(utility), dtype=np.bool_)
    possible[-(-len(prompt.prefix) // BLOCK) : (len(prompt.prefix) + len(prompt.history)) // BLOCK] = True
    possible[[block for block in pinned if block < len(utility)]] = False
    drawn = []
    for low, high in pairwise(edges):
        found = np.flatnonzero(possible & (utility >= low) & (utility < high))
        if len(found):
            drawn.append(int(rng.choice(found)))
    return drawn


def _of_history(block: int, prompt: Prompt) -> Span:
    """The tokens of the history that a block of the prompt has; an empty span for none."""
    start = block * BLOCK - len(prompt.prefix)
    return max(start, 0), max(min(start + BLOCK, len(prompt.history)), 0)


def _holds(evidence: Sequence[Span], span: Span) -> bool:
    return any(start < span[1] and span[0] < stop for start, stop in evidence)


def _loss(reader: "TransformersReader", method: MegaContext, prompt: Prompt, sample: Sample, shown: set[int]) -> float:
    """NLL in nats of the whole right answer, behind the blocks ``shown`` of the prompt and what stands around."""
    spans = [(start, stop) for start, stop in (_of_history(block, prompt) for block in shown) if start < stop]
    reading = reader.ask(prompt, show_spans(spans, len(prompt.history), method.focus.gap_ids), sample)
    assert reading.losses is not None
    right = sample.candidates.index(sample.answer)
    return reading.losses[right] * len(reader.follow(sample.answer_start, sample.answer))


def ranges(tried: Sequence[Tried], edges: Sequence[float] = EDGES) -> list[Range]:
    """What was tried, by utility; ranges without a block are left out."""
    found = []
    for low, high in pairwise(edges):
        within = [one for one in tried if low <= one.utility < high]
        if within:
            gains = _bounded(within)
            sure = interval(gains, [one.history for one in within])
            utility = float(np.mean([one.utility for one in within]))
            found.append(Range(low, high, len(within), utility, float(gains.mean()), sure))
    return found


def ordered(tried: Sequence[Tried]) -> tuple[float, int]:
    """(share, number) of pairs of blocks of one question, one of them clearly better, in which it has more utility.

    A half is chance. Equal utilities count a half. (nan, 0) without such a pair.
    """
    by_sample: dict[str, list[Tried]] = {}
    for one in tried:
        by_sample.setdefault(one.sample, []).append(one)
    right, pairs = 0.0, 0
    for blocks in by_sample.values():
        for i, first in enumerate(blocks):
            for second in blocks[:i]:
                if abs(first.gain - second.gain) > DIFFERENT:
                    better, worse = (first, second) if first.gain > second.gain else (second, first)
                    right += (np.sign(better.utility - worse.utility) + 1) / 2
                    pairs += 1
    return (float(right / pairs) if pairs else float("nan")), pairs


def calibrate(tried: Sequence[Tried]) -> list[tuple[float, float]]:
    """Knots (utility, expected gain in nats within [-1, 1]), both rising; lines between them: ``focus.calibration``.

    Isotonic regression by pooling adjacent violators (Ayer et al. 1955), one knot per pool. Pools of less than
    ``LEAST`` blocks are put together, since each says little.
    """
    from scipy.optimize import isotonic_regression

    order = sorted(tried, key=lambda one: one.utility)
    fitted = isotonic_regression(_bounded(order)).x
    pools = [np.flatnonzero(fitted == value) for value in np.unique(fitted)]
    for i in reversed(range(1, len(pools))):
        if min(len(pools[i]), len(pools[i - 1])) < LEAST:
            pools[i - 1 : i + 1] = [np.concatenate(pools[i - 1 : i + 1])]
    utilities = np.array([one.utility for one in order])
    return [(round(float(utilities[pool].mean()), 4), round(float(fitted[pool].mean()), 4)) for pool in pools]


def _bounded(tried: Sequence[Tried]) -> npt.NDArray[np.float64]:
    return np.clip([one.gain for one in tried], -1.0, 1.0)
