"""Which Working Contexts a window of text becomes, and how many of them are run as one sequence.

A *prefix* tiles the window's beginning with raw blocks and gists of several levels, as the allocator would. *Segments*
of raw text follow. Each segment is the end of a Working Context of its own, [sink][prefix up to the segment][segment],
and all share one run of the prefix: a segment sees the entries of the prefix that end where it starts, itself, and
nothing else. So nearly every token of the window is a target at a cost of little more than one pass, where separate
sequences would show the same gists again and again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacontext_vllm.nets.gistnet import BLOCK

Node = tuple[int, int]
PREFIX = -1


@dataclass(frozen=True)
class Packing:
    """One packed sequence of T places over a window of W tokens. Arrays are NumPy, on the host.

    nodes      gists that are shown, (level, index) in the window, in the order of their rows.
    rows       int64 [T]: what stands at each place: 0 the sink, 1 + i token i, 1 + W + j the gist of nodes[j].
    positions  int64 [T]: compact, one an entry.
    visible    bool [T, T]: [i, j], whether place i sees place j.
    places     int64 [n]: places whose next token is a target.
    targets    int64 [n]: the index in the window of that token.
    tails      int64 [n]: raw tokens between the last gist and the target.
    """

    window: int
    nodes: tuple[Node, ...]
    rows: NDArray[np.int64]
    positions: NDArray[np.int64]
    visible: NDArray[np.bool_]
    places: NDArray[np.int64]
    targets: NDArray[np.int64]
    tails: NDArray[np.int64]


def draw_packing(
    rng: np.random.Generator,
    window: int,
    segments: tuple[int, ...],
    *,
    levels: int,
    raw_share: float,
    coarse_share: float,
) -> Packing:
    """A random mix: where the prefix ends first, how long segments are, which blocks stay raw, where LOD ≥ 2 stands."""
    blocks = window // BLOCK
    fitting = [size for size in segments if size < window] or [BLOCK]
    size = int(rng.choice(fitting)) // BLOCK
    first = int(rng.integers(1, max(2, min(blocks * 3 // 4, blocks - size) + 1)))
    starts = list(range(first, blocks, size))
    prefix = draw_prefix(
        rng, starts, levels=levels, raw_share=float(rng.uniform(0, raw_share)), coarse_share=coarse_share
    )
    return pack(window, prefix, [(start * BLOCK, min(start + size, blocks) * BLOCK) for start in starts])


def draw_prefix(
    rng: np.random.Generator, starts: list[int], *, levels: int, raw_share: float, coarse_share: float
) -> list[Node]:
    """Nodes that tile the blocks up to the last of ``starts``; a raw block is (0, block). None straddles a start."""

    def fits(level: int) -> bool:
        size = BLOCK ** (level - 1)
        stop = block + size
        return block % size == 0 and stop <= starts[-1] and not any(block < start < stop for start in starts)

    nodes: list[Node] = []
    block = 0
    while block < starts[-1]:
        level = 1
        while level < levels and fits(level + 1) and rng.random() < coarse_share:
            level += 1
        if level == 1 and rng.random() < raw_share:
            level = 0
        size = BLOCK ** max(0, level - 1)
        nodes.append((level, block // size))
        block += size
    if not any(level for level, _ in nodes):
        nodes[0] = (1, 0)  # nothing to learn from otherwise
    return nodes


def pack(window: int, prefix: list[Node], segments: list[tuple[int, int]]) -> Packing:
    """``prefix``: nodes that tile [0, last segment's start), raw blocks as (0, block); ``segments``: [start, stop)."""
    rows, nexts = [0], [0]  # what stands there, and the index of the token that comes next
    tails = [-1]  # raw entries since the last gist; -1 before the first
    gists = 0
    for level, index in prefix:
        if level:
            rows.append(1 + window + gists)
            nexts.append((index + 1) * BLOCK**level)
            tails.append(0)
            gists += 1
            continue
        for token in range(index * BLOCK, (index + 1) * BLOCK):
            rows.append(1 + token)
            nexts.append(token + 1)
            tails.append(tails[-1] + 1 if tails[-1] >= 0 else -1)
    length = len(rows)
    branch, seen, positions = [PREFIX] * length, [0] * length, list(range(length))
    ends = np.array(nexts)
    last_gists = set()
    for number, (start, stop) in enumerate(segments):
        past = int(np.searchsorted(ends, start, side="right"))
        assert ends[past - 1] == start, f"no entry of the prefix ends at {start}"
        last_gists |= {past - 1} if tails[past - 1] == 0 else set()
        size = stop - start
        rows += range(1 + start, 1 + stop)
        nexts += range(start + 1, stop + 1)
        branch += [number] * size
        seen += [past] * size
        positions += range(past, past + size)
        tails += [tails[past - 1] + 1 + i if tails[past - 1] >= 0 else -1 for i in range(size)]
    is_gist = np.array(rows) > window
    # A gist has a next token to foretell only where raw text follows it.
    foretells = ~is_gist | np.isin(np.arange(len(rows)), list(last_gists))
    places = np.flatnonzero(foretells & (np.array(tails) >= 0) & (np.array(nexts) < window))
    return Packing(
        window=window,
        nodes=tuple(node for node in prefix if node[0]),
        rows=np.array(rows),
        positions=np.array(positions),
        visible=_visible(np.array(branch), np.array(seen)),
        places=places,
        targets=np.array(nexts)[places],
        tails=np.array(tails)[places],
    )


def _visible(branch: NDArray[np.int64], seen: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [T, T]. branch: PREFIX or the segment's number. seen: how many entries of the prefix a segment sees."""
    order = np.arange(len(branch))
    causal = order[:, None] >= order[None, :]
    return (causal & (branch[:, None] == branch[None, :])) | (order[None, :] < seen[:, None])
