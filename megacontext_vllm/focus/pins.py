"""What is shown raw whatever the lenses say: instructions, what asks, and the end that the model goes on from.

Each has its share of the window at most: what they are pinned for is that the model understands what it is shown.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from megacontext_vllm.focus.query import Query, Range
from megacontext_vllm.tree.nodes import BLOCK

_ROOMY = 256  # entries; a smaller window has no room for instructions beside a question


@dataclass(frozen=True)
class Pins:
    """``head`` and ``tail`` in tokens, which the allocator rounds outwards to whole blocks, and ``between`` them ranges
    of whole blocks.
    """

    head: int
    tail: int
    between: tuple[Range, ...] = ()


def pins(
    length: int, query: Query, window: int, head: int, tail: int, *, answer: int, anywhere: bool, gap_cost: int
) -> Pins:
    """What is pinned of ``length`` tokens in ``window`` entries, which they do not fit.

    head, tail  tokens at the ends, as ``Focus`` has them.
    answer      how many tokens, at the end, are an answer under way.
    anywhere    the end of what is read is like any other part of it, as ``Scored`` has it.
    gap_cost    entries of the marker in place of a hidden span.
    """
    most, quarter = max(BLOCK, _blocks(window // 8)), _blocks(window // 4)
    if answer:
        # The question is in the middle now, and what is raw at the end is the answer, which has to go on from there.
        first = min(max(head, query.instructions), _blocks(window // 8))
        end = min(_blocks(answer), quarter) + length % BLOCK
        prompt = length - answer
        stop = query.end if query.result[1] else prompt
        asked = (query.start, min(stop, query.start // BLOCK * BLOCK + quarter))
        # Whose turn it is stands behind the question, or behind what tools returned.
        closing = (max(query.end, query.result[1], prompt - BLOCK), prompt)
        beside: tuple[Range, ...] = (asked, closing, *query.beside)
    else:
        first = max(min(head, most), min(query.instructions, quarter if window >= _ROOMY else 0))
        end = _end(length, query, window, tail, most, anywhere)
        beside = query.beside
    return Pins(first, end, tuple(_within(beside, length, window, first, end, gap_cost)))


def _end(length: int, query: Query, window: int, tail: int, most: int, anywhere: bool) -> int:
    """Tokens at the end of a prompt, at most about half of the window."""
    closed = query.end < length
    # A message that is closed asks on its own; a text that just ends is to be continued from its end.
    recent = min(tail, most) if closed else tail
    asking = length - query.start
    quarter = _blocks(window // 4)
    if query.result[1] and asking > quarter:
        asking = length - query.result[1]
        since = length - (query.step[0] or query.result[0])
        if since <= quarter:
            return since  # a short result is read whole, with what it was called for
    if anywhere and closed and query.document >= tail:
        # Just in front of the question, what a document happens to end with is what a small reader answers from.
        # Where nothing was found, it may be what is meant: the end of a log says why it failed.
        recent = 0
    return min(max(recent, asking), window // 2 - BLOCK)


def _within(
    wanted: Iterable[Range], length: int, window: int, head: int, tail: int, gap_cost: int
) -> Iterable[Range]:
    """Of ``wanted``, the first before the rest, what has room between ``head`` and ``tail``, in whole blocks."""
    first, stop = -(-head // BLOCK), max(0, (length - tail) // BLOCK)
    spare = window - first * BLOCK - (length - stop * BLOCK)
    left = min(window // 4 // BLOCK, (spare - gap_cost) // (BLOCK + gap_cost))  # each may stand alone
    taken: set[int] = set()
    for start, end in wanted:
        # Where not all of it has room, its end is what asks.
        for block in reversed(range(max(first, start // BLOCK), min(stop, -(-end // BLOCK)))):
            if left > 0 and block not in taken:
                taken.add(block)
                left -= 1
                yield block * BLOCK, (block + 1) * BLOCK


def _blocks(tokens: int) -> int:
    return tokens // BLOCK * BLOCK
