"""The measurement: the same windows shown raw, without their older part, and with its gists of every maker."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.gists.layouts import TARGETS, GistLayout
from megacontext_vllm.eval.gists.makers import GistMaker
from megacontext_vllm.eval.gists.showing import Positions, Showing, Shown
from megacontext_vllm.eval.gists.windows import Documents, Window, draw
from megacontext_vllm.eval.readers.transformers_reader import TransformersReader

ENTRIES_AT_ONCE = 1024
"""Entries of windows that go through the model together on a CPU, where more is not faster."""
ENTRIES_AT_ONCE_ON_GPU = 32_768

Losses = NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Way:
    """A way to show gists: who made them, and at which positions they stand."""

    maker: str
    positions: Positions = Positions.COMPACT


@dataclass(frozen=True, eq=False)
class Measured:
    """Mean NLL of the targets of each window, nats per token, float64 ``[N]``.

    ``full`` is None where it was not read. ``sources`` and ``documents``, ``[N]``: where each window is from.
    """

    layout: GistLayout
    sources: tuple[str, ...]
    documents: tuple[str, ...]
    full: Losses | None
    dropped: Losses
    shown: dict[Way, Losses]


def measure(
    reader: TransformersReader,
    documents: Documents,
    makers: Sequence[GistMaker],
    layouts: Sequence[GistLayout],
    windows: int = 256,
    seed: int = 0,
    positions: Sequence[Positions] = (Positions.COMPACT,),
    progress: Progress = lambda done, total: None,
) -> list[Measured]:
    """Every maker in every layout on ``windows`` windows of ``documents``; layouts of one length share theirs.

    ``progress`` gets (done, total) in entries read. Raises EvaluationError if a layout does not fit the documents or
    the model. Positions beyond the model's, which span positions can be, are left out.
    """
    assert len({maker.name for maker in makers}) == len(makers), "two makers of one name"
    plans = [_Plan(reader.limit, layout, makers, positions) for layout in layouts]
    drawn = [draw(documents, layout.length, windows, seed) for layout in layouts]
    total = windows * sum(plan.entries for plan in plans)
    done = 0

    def read(entries: int) -> None:
        nonlocal done
        done += entries
        progress(done, total)

    progress(0, total)
    scorer = _Scorer(reader)
    return [scorer.measure(plan, chosen, read) for plan, chosen in zip(plans, drawn, strict=True)]


class _Plan:
    """What is read of a layout, and how many entries one window costs."""

    def __init__(
        self, limit: int | None, layout: GistLayout, makers: Sequence[GistMaker], positions: Sequence[Positions]
    ) -> None:
        self.layout = layout
        compact, whole = 1 + layout.gists + layout.tail + TARGETS, 1 + layout.length
        needed = whole if layout.full else compact
        if limit is not None and needed > limit:
            raise EvaluationError(
                f"layout '{layout.name}' needs {needed:,} positions, and the model has {limit:,}: leave it out"
            )
        fitting = [where for where in positions if limit is None or where is Positions.COMPACT or whole <= limit]
        self.ways = [(maker, Way(maker.name, where)) for maker in makers for where in fitting]
        self.entries = (whole if layout.full else 0) + 1 + layout.tail + TARGETS + compact * len(self.ways)


class _Scorer:
    def __init__(self, reader: TransformersReader) -> None:
        self._reader = reader
        self._showing = Showing(torch.from_numpy(reader.embedding), reader.chat.sink)

    def measure(self, plan: _Plan, windows: list[Window], read: Callable[[int], None]) -> Measured:
        layout = plan.layout
        tokens = torch.from_numpy(np.stack([window.tokens for window in windows]).astype(np.int64))

        def each(show: Callable[[torch.Tensor], Shown], entries: int) -> Losses:
            losses = []
            at_once = ENTRIES_AT_ONCE if self._reader.device.type == "cpu" else ENTRIES_AT_ONCE_ON_GPU
            for batch in tokens.split(max(1, at_once // entries)):
                losses.append(self._losses(show(batch), batch[:, -TARGETS:]))
                read(len(batch) * entries)
            return np.concatenate(losses)

        full = each(self._showing.full, 1 + layout.length) if layout.full else None
        dropped = each(lambda batch: self._showing.dropped(batch, layout), 1 + layout.tail + TARGETS)
        shown = {}
        for maker, way in plan.ways:

            def show(batch: torch.Tensor, maker: GistMaker = maker, where: Positions = way.positions) -> Shown:
                return self._showing.gisted(batch, layout, self._gists(maker, batch, layout), where)

            shown[way] = each(show, 1 + layout.gists + layout.tail + TARGETS)
        sources = tuple(window.source for window in windows)
        return Measured(layout, sources, tuple(window.document for window in windows), full, dropped, shown)

    def _gists(self, maker: GistMaker, batch: torch.Tensor, layout: GistLayout) -> torch.Tensor:
        """Float32 ``[b, g, d]`` for windows ``[b, n]``; ``g`` is 1 where only the last is shown."""
        nodes = batch[:, : layout.older].reshape(len(batch), layout.gists, layout.span)
        if maker.last_only:
            nodes = nodes[:, -1:]
        made = maker.gists(nodes.reshape(-1, layout.span), layout.level)
        return made.view(len(batch), nodes.shape[1], -1)

    @torch.inference_mode()
    def _losses(self, shown: Shown, targets: torch.Tensor) -> Losses:
        """Mean NLL, float64 ``[b]``, of ``targets`` int64 ``[b, 64]``."""
        model, device = self._reader.model, self._reader.device
        rows = shown.rows.to(device, model.get_input_embeddings().weight.dtype)
        # Without a mask transformers takes a jump of positions for the beginning of another text.
        mask = torch.ones(rows.shape[:2], dtype=torch.int64, device=device)
        logits = model(
            inputs_embeds=rows,
            attention_mask=mask,
            position_ids=shown.positions.to(device).expand(len(rows), -1),
            use_cache=False,
            logits_to_keep=TARGETS,
        ).logits
        losses = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.to(device).flatten(), reduction="none"
        )
        return losses.view(targets.shape).double().mean(dim=1).cpu().numpy()
