"""Truncation in the middle."""

from megacontext_vllm.eval.context import Context, show_spans
from megacontext_vllm.eval.methods.base import Method, View


class HeadTail(Method):
    """Half of the budget from the start and half from the end, a gap between.

    Halves, because that is how LongBench (Bai et al. 2023, arXiv:2308.14508) truncates, and so what published numbers
    of "truncated" models mean; the end alone is what ``tail`` measures.
    """

    name = "head_tail"
    summary = "the first and the last tokens, half of the budget each"

    def select(self, view: View, budget: int) -> Context:
        length, gap = len(view.prompt.history), self.tools.gap
        if length <= budget:
            return show_spans([(0, length)], length, gap)
        spare = budget - len(gap)
        head = spare // 2
        return show_spans([(0, head), (length - (spare - head), length)], length, gap)
