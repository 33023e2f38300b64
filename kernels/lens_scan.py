"""Which nodes of a level are most useful for a query: all of them scored in one pass, the best kept as it goes.

Two forms. :func:`lens_scan` compares stored keys with a query, :func:`lexical_scan` looks up the weight of every raw
token and sums over its block of 32. Both keep the best nodes of every *group* of neighbours, so that what is written is
small; the best of all are among the best of the groups.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32
MOST = 16
"""Nodes kept of a group, at most."""
AT_ONCE = 8192
"""Nodes that the host scores at a time."""


def lens_scan_reference(
    keys: Tensor, query: Tensor, keep: int, group: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Obviously right form of :func:`lens_scan`: one node after the other, in float64 (values float32)."""
    scores = []
    for node, key in enumerate(keys):
        score = float((key.double() * query.double()).sum())  # -inf counts as no score, as a NaN does
        scores.append(score * float(scales[node]) if scales is not None else score)
    return _best_reference(scores, keep, group)


def lexical_scan_reference(tokens: Tensor, weights: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    """Obviously right form of :func:`lexical_scan`."""
    table = weights.double().tolist()
    ids = tokens.long().tolist()
    of_tokens = [table[token if 0 <= token < len(table) else -1] for token in ids]
    blocks = range(len(ids) // BLOCK)
    return _best_reference([sum(of_tokens[i * BLOCK : (i + 1) * BLOCK]) for i in blocks], keep, group)


def lens_scan(
    keys: Tensor, query: Tensor, keep: int, group: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The best nodes of every group, by the product of their keys with a query.

    Parameters
    ----------
    keys: [N, k], contiguous, any float type; or int8 with ``scales``. k ≤ 256.
    query: [k] float32.
    keep: how many of a group, 1 to 16; group: nodes of a group, a power of two from 16 to 1,024. On a GPU, group · k
        (rounded up to a power of two) is at most 32,768.
    scales: [N] float32: key ``i`` is ``scales[i] * keys[i]``.

    Returns
    -------
    (values, nodes), float32 and int64 ``[ceil(N / group), keep]``, the best first, the lower node first among equals. A
    score that is no number counts as the worst. Where a group has fewer nodes: -inf and -1.
    """
    _check(keep, group)
    assert keys.dim() == 2 and keys.shape[1] <= 256 and query.shape == keys.shape[1:], (keys.shape, query.shape)
    assert (scales is not None) == (keys.dtype == torch.int8), "int8 keys come with scales, others without"
    values, nodes = torch.ops.megacontext.lens_scan(keys, query, keep, group, scales)
    return values, nodes


def lexical_scan(tokens: Tensor, weights: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    """The best blocks of every group, by the sum of the weights of their raw tokens.

    Parameters
    ----------
    tokens: [N] int32 token ids, as LOD0 stores them (its uint32 viewed as int32), contiguous. What is behind the last
        complete block is left out. Ids beyond the vocabulary weigh what its last entry does.
    weights: [V] float32: what a token is worth for the question.
    keep, group: as of :func:`lens_scan`, in blocks.

    Returns
    -------
    As :func:`lens_scan`: float32 and int64 ``[ceil(N // 32 / group), keep]``.
    """
    _check(keep, group)
    assert tokens.dim() == 1 and tokens.dtype == torch.int32 and weights.dim() == 1 and len(weights)
    values, nodes = torch.ops.megacontext.lexical_scan(tokens, weights, keep, group)
    return values, nodes


@torch.library.custom_op("megacontext::lens_scan", mutates_args=())
def _lens_scan(
    keys: Tensor, query: Tensor, keep: int, group: int, scales: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    if keys.device.type == "cpu":
        return _best(_score_keys(keys, query, scales), keep, group)
    return _scan_keys(keys, query, keep, group, scales)


@_lens_scan.register_fake
def _(keys: Tensor, query: Tensor, keep: int, group: int, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    return _empty(keys, keys.shape[0], keep, group)


@torch.library.custom_op("megacontext::lexical_scan", mutates_args=())
def _lexical_scan(tokens: Tensor, weights: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    if tokens.device.type == "cpu":
        return _best(_score_tokens(tokens, weights), keep, group)
    return _scan_tokens(tokens, weights, keep, group)


@_lexical_scan.register_fake
def _(tokens: Tensor, weights: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    return _empty(tokens, tokens.shape[0] // BLOCK, keep, group)


def _check(keep: int, group: int) -> None:
    assert 1 <= keep <= min(MOST, group), f"keep={keep}: 1 to {min(MOST, group)}"
    assert 16 <= group <= 1024 and group & (group - 1) == 0, f"group={group}: a power of two from 16 to 1,024"


def _empty(like: Tensor, nodes: int, keep: int, group: int) -> tuple[Tensor, Tensor]:
    groups = (nodes + group - 1) // group
    return (
        like.new_empty(groups, keep, dtype=torch.float32),
        like.new_empty(groups, keep, dtype=torch.int64),
    )


def _best_reference(scores: list[float], keep: int, group: int) -> tuple[Tensor, Tensor]:
    values, nodes = [], []
    for start in range(0, len(scores), group):
        known = {i: scores[i] for i in range(start, min(start + group, len(scores))) if scores[i] > float("-inf")}
        best = sorted(known, key=lambda i: (-known[i], i))[:keep]
        missing = keep - len(best)
        values.append([known[i] for i in best] + [float("-inf")] * missing)
        nodes.append(best + [-1] * missing)
    shape = (len(values), keep)
    return torch.tensor(values).float().reshape(shape), torch.tensor(nodes, dtype=torch.int64).reshape(shape)


def _best(scores: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    """The best of every group of scores ``[N]``, on the host."""
    scores = scores.float().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    padded = torch.nn.functional.pad(scores, (0, -len(scores) % group), value=float("-inf")).view(-1, group)
    # One whole number that orders as the score does and, among equals, lower nodes first: topk promises no order.
    bits = (padded + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0: equal scores have equal bits
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    rank = ordered * group + torch.arange(group - 1, -1, -1)
    places = group - 1 - torch.topk(rank, keep, dim=1).values % group
    values = padded.gather(1, places)
    nodes = places + torch.arange(len(padded)).unsqueeze(1) * group
    return values, torch.where(values.isneginf(), -1, nodes)


def _score_keys(keys: Tensor, query: Tensor, scales: Tensor | None) -> Tensor:
    """float32 ``[N]``, on the host. Piece by piece, so that what is widened stays in the cache."""
    scores = torch.cat([torch.mv(piece.float(), query.float()) for piece in keys.split(AT_ONCE)])
    return scores * scales if scales is not None else scores


def _score_tokens(tokens: Tensor, weights: Tensor) -> Tensor:
    """float32 ``[N // 32]``, on the host: NumPy looks up four times as fast as torch here, and lets go of the GIL."""
    ids = tokens.numpy()[: len(tokens) // BLOCK * BLOCK].view("uint32")
    table = weights.float().numpy()
    pieces = range(0, len(ids), BLOCK * AT_ONCE)
    scores = [table.take(ids[i : i + BLOCK * AT_ONCE], mode="clip").reshape(-1, BLOCK).sum(axis=1) for i in pieces]
    return torch.cat([torch.from_numpy(piece) for piece in scores]) if scores else torch.empty(0)


@triton.jit
def keep_best(values, nodes, b_score, i_g, keep, G: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the ``keep`` best of the scores [G] of group ``i_g``: one after the other, each then out of the race."""
    o_g = tl.arange(0, G)
    b_score = tl.where(b_score == b_score, b_score, float("-inf"))  # what is no number is the worst
    for i in range(keep):
        best = tl.max(b_score, axis=0)
        at = tl.min(tl.where(b_score == best, o_g, G), axis=0)
        tl.store(values + i_g * keep + i, best)
        tl.store(nodes + i_g * keep + i, tl.where(best > float("-inf"), i_g * G + at, -1))
        b_score = tl.where(o_g == at, float("-inf"), b_score)


@triton.jit
def lens_scan_kernel(  # type: ignore[no-untyped-def]
    values,  # *fp32 [groups, keep]
    nodes,  # *int64 [groups, keep]
    keys,  # *[N, k]
    scales,  # *fp32 [N], or anything where there are none
    query,  # *fp32 [k]
    num_nodes,
    k,
    keep,
    G: tl.constexpr,
    K: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One program a group. Memory-bound: a product with one query is no work for tensor cores."""
    i_g = tl.program_id(0).to(tl.int64)
    o_g, o_k = tl.arange(0, G), tl.arange(0, K)
    i_n = i_g * G + o_g
    m_n = i_n < num_nodes
    b_q = tl.load(query + o_k, mask=o_k < k, other=0.0)
    p_key = keys + i_n[:, None] * k + o_k[None, :]
    b_key = tl.load(p_key, mask=m_n[:, None] & (o_k < k)[None, :], other=0.0)  # [G, K]
    b_score = tl.sum(b_key.to(tl.float32) * b_q[None, :], axis=1)  # [G]
    if SCALED:
        b_score *= tl.load(scales + i_n, mask=m_n, other=0.0)
    keep_best(values, nodes, tl.where(m_n, b_score, float("-inf")), i_g, keep, G)


@triton.jit
def lexical_scan_kernel(  # type: ignore[no-untyped-def]
    values,  # *fp32 [groups, keep]
    nodes,  # *int64 [groups, keep]
    tokens,  # *int32 [N]
    weights,  # *fp32 [V]
    num_nodes,
    vocabulary,
    keep,
    G: tl.constexpr,
):
    """One program a group. The table of weights is read from L2; from memory come the tokens, once."""
    i_g = tl.program_id(0).to(tl.int64)
    o_g, o_t = tl.arange(0, G), tl.arange(0, 32)
    i_n = i_g * G + o_g
    m_n = i_n < num_nodes
    b_id = tl.load(tokens + i_n[:, None] * 32 + o_t[None, :], mask=m_n[:, None], other=0)  # [G, 32]
    b_id = tl.where((b_id >= 0) & (b_id < vocabulary), b_id, vocabulary - 1)
    b_score = tl.sum(tl.load(weights + b_id), axis=1)  # [G]
    keep_best(values, nodes, tl.where(m_n, b_score, float("-inf")), i_g, keep, G)


def _scan_keys(keys: Tensor, query: Tensor, keep: int, group: int, scales: Tensor | None) -> tuple[Tensor, Tensor]:
    assert keys.is_contiguous() and (scales is None or scales.is_contiguous()), "keys, scales have to be contiguous"
    assert group * triton.next_power_of_2(keys.shape[1]) <= 1 << 15, "group · k is at most 32,768 on a GPU"
    n, k = keys.shape
    values, nodes = _empty(keys, n, keep, group)
    if n:
        width = triton.next_power_of_2(k)
        lens_scan_kernel[(len(values),)](
            values,
            nodes,
            keys,
            query if scales is None else scales,
            query.float().contiguous(),
            n,
            k,
            keep,
            G=group,
            K=width,
            SCALED=scales is not None,
            num_warps=_warps(group * width),
        )
    return values, nodes


def _scan_tokens(tokens: Tensor, weights: Tensor, keep: int, group: int) -> tuple[Tensor, Tensor]:
    n = len(tokens) // BLOCK
    values, nodes = _empty(tokens, n, keep, group)
    if n:
        lexical_scan_kernel[(len(values),)](
            values,
            nodes,
            tokens.contiguous(),
            weights.float().contiguous(),
            n,
            len(weights),
            keep,
            G=group,
            num_warps=_warps(group * BLOCK),
        )
    return values, nodes


def _warps(elements: int) -> int:
    """So that a lane has at most 64 elements of the groups that are compiled in the tests, and nothing spills."""
    return min(16, 1 << max(0, -(-elements // (64 * 32)) - 1).bit_length())


def compiled_forms() -> list[tuple[str, object, dict[str, str], dict[str, int], int]]:
    """What is compiled ahead of time in the tests: (name, kernel, types of arguments, constants, warps).

    ``i32:16``: a size that 16 divides.
    """
    forms: list[tuple[str, object, dict[str, str], dict[str, int], int]] = []
    best = {"values": "*fp32", "nodes": "*i64"}
    for k, dtype, group in ((128, "bf16", 128), (128, "i8", 256), (64, "fp32", 64), (100, "bf16", 128)):
        width = triton.next_power_of_2(k)
        given = best | {"keys": f"*{dtype}", "scales": "*fp32", "query": "*fp32"}
        given |= {"num_nodes": "i32", "k": "i32:16" if k % 16 == 0 else "i32", "keep": "i32"}
        constants = {"G": group, "K": width, "SCALED": int(dtype == "i8")}
        forms.append((f"lens_scan k={k} {dtype} G={group}", lens_scan_kernel, given, constants, _warps(group * width)))
    for group in (64, 256):
        given = best | {"tokens": "*i32", "weights": "*fp32", "num_nodes": "i32", "vocabulary": "i32", "keep": "i32"}
        forms.append((f"lexical_scan G={group}", lexical_scan_kernel, given, {"G": group}, _warps(group * BLOCK)))
    return forms
