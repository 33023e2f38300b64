"""The forest between the pinned ends, against a walk over every node."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megacontext_vllm.focus.forest import Forest


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_frontier_and_ranges(data: st.DataObject) -> None:
    branching, blocks = data.draw(st.sampled_from([2, 3, 4])), data.draw(st.integers(0, 60))
    first = data.draw(st.integers(0, blocks))
    stop = data.draw(st.integers(first, blocks))
    forest = Forest.over(blocks, first, stop, branching)
    inside = []
    while blocks // branching ** len(inside):
        width = branching ** len(inside)
        inside.append([n for n in range(blocks // width) if first <= n * width and (n + 1) * width <= stop])
    assert [list(nodes) for nodes in forest.inside] == inside

    # From the top down: what is on display is expanded or not, as chance has it.
    expanded, shown = forest.nothing(), forest.nothing()
    for i in reversed(range(len(inside))):
        above = set(inside[i + 1]) if i + 1 < len(inside) else set()
        visible = [n for n in inside[i] if n // branching not in above or n // branching in expanded[i + 1]]
        expanded[i] = {n for n in visible if data.draw(st.booleans())}
        shown[i] = set(visible) - expanded[i]
        assert forest.roots(i).tolist() == [n for n in inside[i] if n // branching not in above]
        numbers = np.arange(len(inside[i]))
        if above:
            families = [[n * branching + child - inside[i][0] for child in range(branching)] for n in sorted(above)]
            assert forest.families(i, numbers).tolist() == families
        else:
            assert forest.families(i, numbers).size == 0 and not forest.below(i)
    assert [nodes.tolist() for nodes in forest.frontier(expanded)] == [sorted(nodes) for nodes in shown]
