"""Telemetry of a plan: which nodes came to be, which were shown, which were expanded to be shown raw."""

import numpy as np

from megacontext_vllm.focus.working_context import Kind, WorkingContext
from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes
from megacontext_vllm.tree.telemetry import NodeTelemetry
from megacontext_vllm.tree.tree import MegaContextTree


def note_plan(tree: MegaContextTree, reused: int, length: int, context: WorkingContext) -> None:
    """Note what ``context`` shows of the ``length`` tokens of a tree, of which ``reused`` were there before.

    A block that the lens chose was expanded, and with it every node above that is not on display as a gist. What is
    pinned is shown to every question and says nothing about it. About a millisecond; a disk that refuses is logged.
    """
    with NodeTelemetry(tree.path) as telemetry:
        for level in range(1, depth(length) + 1):
            if (start := num_nodes(reused, level)) < (stop := num_nodes(length, level)):
                telemetry.note_created(level, start, stop)
        whole = [e.index for e in context.entries if e.kind is Kind.RAW and e.reason in ("lens", "recent")]
        nodes = np.array(whole, np.int64)
        telemetry.note_access(1, nodes)
        level = 1
        while len(nodes):
            telemetry.note_expand(level, nodes)
            level += 1
            nodes = np.unique(nodes // BLOCK)
            nodes = nodes[nodes < num_nodes(length, level)]
        gists: dict[int, list[int]] = {}
        for entry in context.entries:
            if entry.kind is Kind.GIST:
                gists.setdefault(entry.level, []).append(entry.index)
        for level, shown in gists.items():
            telemetry.note_access(level, shown)
