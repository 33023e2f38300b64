"""What MegaContext shows: the engine's own code from the prompt to the Working Context, put in terms of the history."""

from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.errors import EvaluationError
from megacontext_vllm.eval.context import Context, Gap, Gist, Piece, Raw, show_spans
from megacontext_vllm.eval.methods.base import Method, Tools, View
from megacontext_vllm.eval.prompt import Prompt
from megacontext_vllm.eval.sample import Span
from megacontext_vllm.focus.focus import Focus
from megacontext_vllm.focus.working_context import Entry, Kind, WorkingContext
from megacontext_vllm.tree.nodes import BLOCK


class Vectors(Protocol):
    """Makes the gists of spans of one history or prompt."""

    def __call__(self, tokens: NDArray[np.uint32], spans: list[Span]) -> list[NDArray[np.float32]]:
        """A float32 ``[d]`` for each span of ``tokens`` (uint32 ``[N]``); spans are nodes, so 32^level long."""


class Focused(Method):
    """Served with a window that holds the budget and what stands around the history."""

    least_budget = 2 * BLOCK  # with what stands around a history it may be a window that the engine would serve
    gists: ClassVar[bool]
    """Show what is not expanded as gists; else hide it behind gap markers."""

    def __init__(self, tools: Tools) -> None:
        super().__init__(tools)
        # The engine's lens is made once per tokenizer, and so is this: it decodes the whole vocabulary.
        encoder = None
        if tools.settings.encoder is not None:
            from megacontext_vllm.nets.sentence_encoder import encoder_of  # torch: seconds

            encoder = encoder_of(tools.settings)
        self.focus = Focus.of(tools.chat.tokenizer, tools.settings, encoder)

    def vectors(self, view: View) -> Vectors:
        """How gists are made; never asked without ``gists``."""
        raise NotImplementedError

    def working_context(self, prompt: Prompt, budget: int) -> WorkingContext:
        """What the engine makes of the whole prompt. Raises EvaluationError for a budget that it would not serve."""
        window = budget + prompt.overhead
        if window < 4 * BLOCK:
            raise EvaluationError(f"{self.name}: a window of {window} is below {4 * BLOCK}; give a larger budget")
        return self.focus.allocate(self.focus.score(prompt.tokens), window, gists=self.gists)

    def select(self, view: View, budget: int) -> Context:
        if len(view.prompt.history) <= budget:  # the engine serves this as it is, however small the window
            return show_spans([(0, len(view.prompt.history))], len(view.prompt.history), self.focus.gap_ids)
        context = self.working_context(view.prompt, budget)
        entries = self._of_history(view.prompt, context)
        shown = [(entry.start, entry.end) for entry in entries if entry.kind is Kind.GIST]
        vectors = iter(self.vectors(view)(view.prompt.tokens, shown) if shown else ())
        first, length = len(view.prompt.prefix), len(view.prompt.history)
        pieces: list[Piece] = []
        for entry in entries:
            start, stop = max(entry.start - first, 0), min(entry.end - first, length)
            if entry.kind is Kind.GIST:
                pieces.append(Gist(start, stop, next(vectors)))
            elif entry.kind is Kind.GAP:
                pieces.append(Gap(start, stop))
            elif pieces and isinstance(pieces[-1], Raw):
                pieces[-1] = Raw(pieces[-1].start, stop)
            else:
                pieces.append(Raw(start, stop))
        return Context(tuple(pieces), self.focus.gap_ids)

    def _of_history(self, prompt: Prompt, context: WorkingContext) -> list[Entry]:
        """The entries that show something of the history; what stands around it must be raw."""
        first, stop = len(prompt.prefix), len(prompt.prefix) + len(prompt.history)
        for entry in context.entries:
            if entry.kind is not Kind.RAW and (entry.start < first or entry.end > stop):
                raise EvaluationError(
                    f"{self.name}: with a budget of {context.window - prompt.overhead}, what stands around the history "
                    f"({first} tokens before it, {len(prompt.suffix)} after) is not all pinned; give a larger budget, "
                    "or larger head_tokens and tail_tokens"
                )
        return [entry for entry in context.entries if entry.start < stop and entry.end > first]
