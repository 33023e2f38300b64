"""Node arithmetic: a node is ``(level, index)`` and covers ``[index * 32**level, (index + 1) * 32**level)``."""

BLOCK = 32
"""Children per node, at every level."""


def span(level: int, index: int) -> tuple[int, int]:
    """Tokens ``[start, end)`` that node ``(level, index)`` covers."""
    assert level >= 0
    assert index >= 0
    width = BLOCK**level
    return index * width, (index + 1) * width


def num_nodes(length: int, level: int) -> int:
    """Complete nodes of ``level`` over ``length`` tokens; a partial node does not exist."""
    assert level >= 0
    assert length >= 0
    return int(length // BLOCK**level)


def depth(length: int) -> int:
    """Highest level with at least one complete node over ``length`` tokens; 0 below one block."""
    level = 0
    while num_nodes(length, level + 1) > 0:
        level += 1
    return level
