"""Coverage without detail: the whole history as gists of one level."""

from megacontext_vllm.eval.context import Context, Gap, Gist, Piece, Raw, show_spans
from megacontext_vllm.eval.methods.base import Method, Tools, View
from megacontext_vllm.eval.methods.gist_vectors import embedding_of, gist_vectors
from megacontext_vllm.eval.sample import Span
from megacontext_vllm.tree.nodes import BLOCK, num_nodes


class GistsOnly(Method):
    """The finest level whose nodes all fit the budget; nothing is expanded.

    What does not fill a node of that level shows as the largest nodes that it fills, less than a block of it raw. The
    gists are centred means of embeddings.
    """

    name = "gists_only"
    summary = "the whole history as gists of the finest level that fits, none expanded"
    shows_gists = True

    def __init__(self, tools: Tools) -> None:
        from megacontext_vllm.nets.training_free import CentredMeanGists

        super().__init__(tools)
        self.maker = CentredMeanGists(embedding_of(tools, self.name))

    def select(self, view: View, budget: int) -> Context:
        history, gap = view.prompt.history, self.tools.gap
        length = len(history)
        if length <= budget:
            return show_spans([(0, length)], length, gap)
        nodes, left_out = _nodes(length, budget, len(gap))
        pieces: list[Piece] = [Gap(0, left_out)] if left_out and gap else []
        vectors = gist_vectors(self.maker.gists, history, nodes)
        pieces += [Gist(start, stop, vector) for (start, stop), vector in zip(nodes, vectors, strict=True)]
        end = length - length % BLOCK
        if end < length:
            pieces.append(Raw(end, length))
        return Context(tuple(pieces), gap)


def _nodes(length: int, budget: int, gap_cost: int) -> tuple[list[Span], int]:
    """The nodes to show, and how many of the oldest tokens no node of them covers: none unless the budget is tiny."""
    level = 1
    while True:
        spans = _tiling(length, level)
        room = budget - length % BLOCK
        if len(spans) <= room:
            return spans, 0
        if not num_nodes(length, level + 1):
            kept = spans[len(spans) - max(room - gap_cost, 0) :]
            return kept, kept[0][0] if kept else length - length % BLOCK
        level += 1


def _tiling(length: int, level: int) -> list[Span]:
    """All nodes of ``level``, and behind them the nodes of lower levels that are left, in order."""
    spans: list[Span] = []
    at = 0
    for lower in range(level, 0, -1):
        size = BLOCK**lower
        while at + size <= length:
            spans.append((at, at + size))
            at += size
    return spans
