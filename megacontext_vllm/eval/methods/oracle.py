"""The upper bound: what a method would show that knew the answer's place."""

from collections.abc import Iterable

from megacontext_vllm.eval.context import Context, show_spans
from megacontext_vllm.eval.methods.base import Cheat, View
from megacontext_vllm.eval.sample import Span


class Oracle(Cheat):
    """The evidence, then what stands around it, evenly on both sides, until the budget is spent.

    Evidence beyond the budget: the latest is shown, as much of it as there is room for.
    """

    name = "oracle"
    summary = "the evidence and what stands around it: an upper bound, no method"

    def select_told(self, view: View, budget: int, evidence: tuple[Span, ...]) -> Context:
        length, gap = len(view.prompt.history), self.tools.gap
        if length <= budget:
            return show_spans([(0, length)], length, gap)

        def fits(spans: Iterable[Span]) -> bool:
            return show_spans(spans, length, gap).cost <= budget

        def widened(spans: list[Span], by: int) -> list[Span]:
            return [(max(start - by, 0), min(stop + by, length)) for start, stop in spans]

        shown = list(evidence)
        if not fits(shown):
            return show_spans(self._latest(shown, length, budget), length, gap)
        low, high = 0, length  # the widest that is known to fit, the narrowest that is taken not to
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(widened(shown, middle)) else (low, middle)
        shown = widened(shown, low)
        # What is left is less than one token on every side.
        for i in range(len(shown)):
            for before, after in ((1, 0), (0, 1)):
                start, stop = shown[i]
                wider = [*shown[:i], (max(start - before, 0), min(stop + after, length)), *shown[i + 1 :]]
                shown = wider if fits(wider) else shown
        return show_spans(shown, length, gap)

    def _latest(self, evidence: list[Span], length: int, budget: int) -> list[Span]:
        """The last evidence that fits; of the first span that does not, the end."""
        kept: list[Span] = []
        for start, stop in reversed(evidence):
            low, high = start, stop  # the earliest start that fits lies in (low, high]
            if show_spans([*kept, (start, stop)], length, self.tools.gap).cost <= budget:
                kept.append((start, stop))
                continue
            while high - low > 1:
                middle = (low + high) // 2
                fits = show_spans([*kept, (middle, stop)], length, self.tools.gap).cost <= budget
                low, high = (low, middle) if fits else (middle, high)
            return [*kept, (high, stop)] if high < stop else kept
        return kept
