from itertools import pairwise

import pytest

from megacontext_vllm.tree.nodes import BLOCK, depth, num_nodes, span


def test_span_of_a_node_is_the_spans_of_its_children() -> None:
    for level in range(1, 5):
        for index in (0, 1, 7):
            children = [span(level - 1, index * BLOCK + child) for child in range(BLOCK)]
            assert span(level, index) == (children[0][0], children[-1][1])
            assert all(left[1] == right[0] for left, right in pairwise(children))


@pytest.mark.parametrize(
    ("length", "deepest"),
    [(0, 0), (31, 0), (32, 1), (1023, 1), (1024, 2), (32_767, 2), (32_768, 3), (2**20 - 1, 3), (2**20, 4), (2**25, 5)],
)
def test_depth_counts_complete_nodes_only(length: int, deepest: int) -> None:
    assert depth(length) == deepest
    assert num_nodes(length, deepest) > 0 or length == 0
    assert num_nodes(length, deepest + 1) == 0
    assert num_nodes(length, 0) == length
