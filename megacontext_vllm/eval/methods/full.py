"""No choice at all: the whole history, where the reader has positions for it."""

from megacontext_vllm.eval.context import Context, show_spans
from megacontext_vllm.eval.methods.base import Method, View


class Full(Method):
    """All of it, raw, at whatever it costs: what the budget is saving on."""

    name = "full"
    summary = "the whole history, whatever the budget, where it fits the model"
    within_budget = False

    def fits(self, length: int, budget: int) -> bool:
        return length <= (budget if self.tools.longest is None else self.tools.longest)

    def select(self, view: View, budget: int) -> Context:
        length = len(view.prompt.history)
        return show_spans([(0, length)], length, self.tools.gap)
