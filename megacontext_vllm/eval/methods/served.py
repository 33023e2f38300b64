"""No choice on this side: the server is sent everything, and decides itself what its model sees."""

from megacontext_vllm.eval.context import Context, show_spans
from megacontext_vllm.eval.methods.base import Method, View


class Served(Method):
    """All of the history, sent to the server whatever the budget: how a MegaContext server is measured from outside.

    The budget of its results is only a label; what the server spends is its own window.
    """

    name = "served"
    summary = "all of the history, sent to a server that chooses itself (--reader URL)"
    within_budget = False
    needs_server = True

    def select(self, view: View, budget: int) -> Context:
        length = len(view.prompt.history)
        return show_spans([(0, length)], length, self.tools.gap)
