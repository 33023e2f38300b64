"""From all tokens of a request to what the frozen model is shown: tree, query, scores, Working Context, prompt.

Runs in a thread beside the engine loop; nothing here touches vLLM's state.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from megacontext_vllm.engine.asked import Asked
from megacontext_vllm.engine.content_ids import content_id
from megacontext_vllm.engine.giving_way import giving_way
from megacontext_vllm.engine.notes import note_plan
from megacontext_vllm.engine.text_indexes import BYTES_PER_TOKEN, TextIndexes
from megacontext_vllm.engine.token_transport import TokenArray
from megacontext_vllm.errors import CorruptTreeError, StoreError
from megacontext_vllm.focus.calibration import expected_gain
from megacontext_vllm.focus.focus import Focus, Scored
from megacontext_vllm.focus.working_context import Entry, Kind, WorkingContext
from megacontext_vllm.tree.gists import give_up_gists
from megacontext_vllm.tree.nodes import BLOCK
from megacontext_vllm.tree.sealed import SealedSpans
from megacontext_vllm.tree.store.library import TreeLibrary
from megacontext_vllm.tree.tree import MegaContextTree

logger = logging.getLogger("vllm.megacontext")

Tokens = npt.NDArray[np.uint32]

_PIECE = 4096
"""Of a list numpy makes an array in 25 ms per million tokens, in which the engine's loop does not get to run."""


@dataclass(frozen=True)
class PlanRequest:
    """One request as the planner sees it. ``window``: Working Context budget in entries.

    ``behind``: tokens behind those of ``prompt``. ``answer``: how many of all, at the end, are its answer so far.
    """

    request_id: str
    namespace: str
    prompt: Sequence[int] | Tokens
    window: int
    trace: bool
    answer: int = 0
    behind: Sequence[int] = ()

    def tokens(self) -> Tokens:
        """All of them, uint32; a new array."""
        prompt = self.prompt.array if isinstance(self.prompt, TokenArray) else self.prompt
        length = len(prompt)
        tokens = np.empty(length + len(self.behind), dtype=np.uint32)
        for start in range(0, length, _PIECE):
            stop = min(start + _PIECE, length)
            tokens[start:stop] = prompt[start:stop]
        tokens[length:] = self.behind
        return tokens


@dataclass
class Plan:
    """What a request is shown. All positions below are positions of the engine's prompt.

    ``prompt``: ids for the scheduler, content ids in the places of gists; ``worker_prompt``: the same with the span's
    first token there; ``gist_positions`` int64 [g], ``gist_nodes`` [(level, index)] of the gists. ``going_on``: tokens
    of the answer so far that stand behind the prompt, in one piece; what was said before is history like any other.
    ``tokens`` uint32 [length]: the whole history; who does not need it any more sets it to None.
    """

    tree: MegaContextTree
    tokens: Tokens | None
    length: int
    created: bool
    reused: int
    context: WorkingContext
    prompt: list[int]
    worker_prompt: list[int]
    gist_positions: npt.NDArray[np.int64]
    gist_nodes: list[tuple[int, int]]
    going_on: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    described: list[dict[str, object]] | None = None  # entries with their text, where a trace was asked for

    def go_on_from(self, answer: int) -> None:
        """Take what is left in one piece of the last ``answer`` tokens of the history out of the prompt."""
        piece = 0
        for entry in reversed(self.context.entries):
            if entry.kind is not Kind.RAW or piece >= answer:
                break
            piece += entry.end - entry.start
        cut = len(self.prompt) - min(piece, answer)
        self.prompt, self.going_on = self.prompt[:cut], self.prompt[cut:]
        del self.worker_prompt[cut:]


class Planner:
    """Holds what planning needs for the life of the engine: library, focus, fingerprints."""

    def __init__(
        self,
        library: TreeLibrary,
        focus: Focus,
        *,
        gist_fingerprint: bytes | None,
        model_fingerprint: bytes,
        text_memory: int,
    ) -> None:
        """text_memory: bytes that the indexes of texts may take."""
        self.library = library
        self.focus = focus
        self._asked, self._indexes = Asked(focus), TextIndexes(focus, text_memory // BYTES_PER_TOKEN)
        self.gist_fingerprint = gist_fingerprint
        self.model_fingerprint = model_fingerprint

    def plan(self, request: PlanRequest, *, gists: bool) -> Plan:
        """Store the history and choose its Working Context.

        ``gists``: show unexpanded spans as gists; else hide them behind the gap marker. Raises StoreError where the
        tree cannot be written and BudgetError where the pinned parts do not fit the window. The tree of the returned
        plan is held; release it with ``library.release``.
        """
        with giving_way():
            return self._plan(request, gists)

    def _plan(self, request: PlanRequest, gists: bool) -> Plan:
        seconds: dict[str, float] = {}
        started = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal started
            now = time.perf_counter()
            seconds[name] = now - started
            started = now

        tokens = request.tokens()
        acquired = self.library.acquire(request.namespace, tokens)
        lap("store")
        try:
            scored = self._score(request, tokens)
            lap("score")
            # Below a sealed node there are no gists to show. Without gists it makes no difference: the request brought
            # its tokens along.
            nodes = [(item.level, item.index) for item in acquired.tree.sealed.overlapping(0, len(tokens))]
            context = self.focus.allocate(scored, request.window, gists=gists, sealed=nodes)
            lap("allocate")
            plan = self._render(acquired.tree, tokens, context)
            if not _check_gists(acquired.tree, plan.gist_nodes):
                context = self.focus.allocate(scored, request.window, gists=False)
                plan = self._render(acquired.tree, tokens, context)
            plan.go_on_from(request.answer)
            if request.trace:
                plan.described = [self._describe(entry, tokens, acquired.tree.sealed) for entry in context.entries]
        except BaseException:
            (self.library.discard if acquired.created else self.library.release)(acquired.tree)
            raise
        lap("render")
        note_plan(acquired.tree, acquired.reused, len(tokens), context)
        lap("note")
        plan.created, plan.reused, plan.seconds = acquired.created, acquired.reused, seconds
        return plan

    def _score(self, request: PlanRequest, tokens: Tokens) -> Scored:
        prompt = tokens[: len(tokens) - request.answer]
        index = self._indexes.of(request.namespace, prompt)
        asked = self._asked.score(request.namespace, prompt, index)
        return self.focus.score_again(tokens, asked, index) if request.answer else asked

    def _render(self, tree: MegaContextTree, tokens: Tokens, context: WorkingContext) -> Plan:
        prompt: list[int] = []
        worker_prompt: list[int] = []
        positions: list[int] = []
        nodes: list[tuple[int, int]] = []
        for entry in context.entries:
            if entry.kind is Kind.RAW:
                ids = tokens[entry.start : entry.end].tolist()
            elif entry.kind is Kind.GAP:
                ids = list(self.focus.gap_ids)
            else:
                assert self.gist_fingerprint is not None, "a gist is shown but no GistNet is loaded"
                positions.append(len(prompt))
                nodes.append((entry.level, entry.index))
                under = tokens[entry.start : entry.end]
                prompt.append(content_id(self.gist_fingerprint, entry.level, under))
                worker_prompt.append(int(under[0]))
                continue
            prompt.extend(ids)
            worker_prompt.extend(ids)
        assert len(prompt) == len(worker_prompt) == context.cost <= context.window
        return Plan(
            tree=tree,
            tokens=tokens,
            length=len(tokens),
            created=False,
            reused=0,
            context=context,
            prompt=prompt,
            worker_prompt=worker_prompt,
            gist_positions=np.array(positions, dtype=np.int64),
            gist_nodes=nodes,
        )

    def _describe(self, entry: Entry, tokens: Tokens, sealed: SealedSpans) -> dict[str, object]:
        described: dict[str, object] = {
            "kind": entry.kind.name.lower(),
            "level": entry.level,
            "index": entry.index,
            "start": entry.start,
            "end": entry.end,
            "reason": entry.reason,
            "score": round(float(entry.score), 4),
        }
        if entry.kind is Kind.GIST and (gone := sealed.overlapping(entry.start, entry.end)):
            described["sealed"] = gone[0].kind
        if entry.kind is Kind.RAW:
            described["text"] = self.focus.decode(tokens[entry.start : entry.end].tolist())
            if entry.reason == "lens" and self.focus.calibrated:
                described["expected_gain"] = round(expected_gain(entry.score), 3)
        return described


def _check_gists(tree: MegaContextTree, nodes: list[tuple[int, int]]) -> bool:
    """Compare the gists that will be shown with their checksums; damaged ones are made again before they are.

    Returns False where that cannot be done, because another process writes the tree or the disk refuses.
    """
    for level, page in sorted({(level, index // BLOCK) for level, index in nodes}):
        first, stop = page * BLOCK, min((page + 1) * BLOCK, tree.gist_count(level))
        if first >= stop:
            continue
        try:
            tree.read_gists(level, first, stop)
        except CorruptTreeError as error:
            logger.warning("MegaContext: gists of tree %s are made again: %s", tree.tree_id, error)
            try:
                give_up_gists(tree, level, first, stop)
            except StoreError as refused:
                logger.error("MegaContext: unexpanded spans are hidden in this request: %s", refused)
                return False
    return True
