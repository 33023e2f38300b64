"""Tail truncation: what most applications do."""

from megacontext_vllm.eval.context import Context, show_spans
from megacontext_vllm.eval.methods.base import Method, View


class Tail(Method):
    """The newest tokens; nothing says that there were others."""

    name = "tail"
    summary = "the last tokens, and no more"

    def select(self, view: View, budget: int) -> Context:
        length = len(view.prompt.history)
        return show_spans([(max(length - budget, 0), length)], length, gap=())
