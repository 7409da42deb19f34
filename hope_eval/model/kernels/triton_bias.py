"""Causal attention with a bias that is computed where it is added, in a Triton kernel: no scores are ever in memory.

    table       bias_h(i, j) = table_h[i - j]; from where it is constant on, one number and no look-up
    slopes      bias_h(i, j) = - m_h (i - j)
    curve       bias_h(i, j) = curve_h(by_distance[i - j] * by_query[i]), straight between the points of the curve

Forward only; memory is linear in length. `attention.py` uses it where no gradient is wanted, and checks once that it
agrees. Importing this module needs Triton.

The loop over keys is that of FlashAttention (Dao, 2023, arXiv 2307.08691): a running maximum and sum of each query.

Shape letters: B batch, H heads, G heads of keys, Q queries, K keys, E head_dim, N distances, P points.
"""

import contextlib
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hope_eval.encodings import Curve

_LOG2_E = 1 / math.log(2)

# Rows and columns of a tile, warps and pipeline stages, by the width of a head; the fastest of those tried on an H100.
_TILES = {
    "table": {64: (64, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
    "slopes": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 32, 8, 2)},
    "curve": {64: (64, 64, 4, 3), 128: (64, 64, 4, 3), 256: (64, 32, 8, 2)},
}
_EXACT_TILE = (32, 32, 4, 2)


# Triton reads annotations, and knows none of Python's.
@triton.jit  # type: ignore[untyped-decorator]
def _look_up(pointers, DIRECT: tl.constexpr):  # type: ignore[no-untyped-def]
    if DIRECT:
        # A plain load would be staged through shared memory, as the pipeliner takes it for one of keys or values.
        return tl.inline_asm_elementwise(
            "ld.global.nc.f32 $0, [$1];", "=f,l", [pointers], dtype=tl.float32, is_pure=True, pack=1
        )
    return tl.load(pointers)


@triton.jit  # type: ignore[untyped-decorator]
def _bias(  # type: ignore[no-untyped-def]
    positions, keys, table, by_query, curve, n_points, slope, KIND: tl.constexpr,
    DIAGONAL: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """Bias of a tile, in units of log 2."""
    distances = positions[:, None] - keys[None, :]
    if KIND == "slopes":
        return slope * distances.to(tl.float32)
    if DIAGONAL:
        distances = tl.maximum(distances, 0)
    looked_up = _look_up(table + distances, DIRECT)
    if KIND == "table":
        return looked_up
    place = tl.minimum(looked_up * by_query[:, None], 1.0) * (n_points - 1)
    before = tl.minimum(place.to(tl.int32), n_points - 2)
    low, high = _look_up(curve + before, DIRECT), _look_up(curve + before + 1, DIRECT)
    return low + (high - low) * (place - before.to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def _over_keys(  # type: ignore[no-untyped-def]
    total, sums, highest, query, key, value, key_stride, value_stride, first, last, positions, n_keys, scale,
    table, by_query, curve, n_points, slope, constant, KIND: tl.constexpr, E: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_N: tl.constexpr, PHASE: tl.constexpr, PRECISION: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """Add what keys first … last give to a block of queries."""
    lanes = tl.arange(0, BLOCK_E)
    for start in tl.range(first, last, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        inside = keys < n_keys
        visible = positions[:, None] >= keys[None, :]
        if PHASE == "diagonal":
            k = tl.load(
                key + keys[None, :].to(tl.int64) * key_stride + lanes[:, None],
                mask=inside[None, :] & (lanes < E)[:, None],
                other=0.0,
            )
        elif E == BLOCK_E:
            k = tl.load(key + keys[None, :].to(tl.int64) * key_stride + lanes[:, None])
        else:
            k = tl.load(
                key + keys[None, :].to(tl.int64) * key_stride + lanes[:, None], mask=(lanes < E)[:, None], other=0.0
            )
        logits = tl.dot(query, k, input_precision=PRECISION) * scale
        if PHASE == "constant":
            logits += constant
        else:
            logits += _bias(positions, keys, table, by_query, curve, n_points, slope, KIND, PHASE == "diagonal", DIRECT)
        if PHASE == "diagonal":
            logits = tl.where(visible, logits, -float("inf"))
        higher = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp2(logits - higher[:, None])
        decay = tl.exp2(highest - higher)
        sums = sums * decay + tl.sum(weights, 1)
        total = total * decay[:, None]
        if PHASE == "diagonal":
            v = tl.load(
                value + keys[:, None].to(tl.int64) * value_stride + lanes[None, :],
                mask=inside[:, None] & (lanes < E)[None, :],
                other=0.0,
            )
        elif E == BLOCK_E:
            v = tl.load(value + keys[:, None].to(tl.int64) * value_stride + lanes[None, :])
        else:
            v = tl.load(
                value + keys[:, None].to(tl.int64) * value_stride + lanes[None, :], mask=(lanes < E)[None, :], other=0.0
            )
        total = tl.dot(weights.to(v.dtype), v, total, input_precision=PRECISION)
        highest = higher
    return total, sums, highest


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    query, key, value, out, table, constant_from, by_query, curve, slopes,
    query_batch, query_head, query_row, key_batch, key_head, key_row, value_batch, value_head, value_row,
    out_batch, out_head, out_row, table_head, n_points, n_heads, n_groups, n_queries, n_keys, scale,
    KIND: tl.constexpr, E: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries. The last queries see most keys, and are begun first.

    Rows past the end are computed like the last one, and not written.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    head = (tl.program_id(1) % n_heads).to(tl.int64)
    batch = (tl.program_id(1) // n_heads).to(tl.int64)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    positions = tl.minimum(rows + n_keys - n_queries, n_keys - 1)
    first = block * BLOCK_M + n_keys - n_queries
    lanes = tl.arange(0, BLOCK_E)
    inside = (rows < n_queries)[:, None] & (lanes < E)[None, :]
    q = tl.load(
        query + batch * query_batch + head * query_head + rows[:, None].to(tl.int64) * query_row + lanes[None, :],
        mask=inside, other=0.0,
    )  # fmt: skip
    key += batch * key_batch + head // n_groups * key_head
    value += batch * value_batch + head // n_groups * value_head
    total = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    sums = tl.zeros([BLOCK_M], tl.float32)
    highest = tl.full([BLOCK_M], -1e38, tl.float32)
    scales = positions.to(tl.float32)
    slope = 0.0
    constant = 0.0
    near = 0
    if KIND == "slopes":
        slope = tl.load(slopes + head)
    if KIND == "table":
        table += head * table_head
        far = tl.load(constant_from + head)
        near = tl.maximum(first - far + 1, 0) // BLOCK_N * BLOCK_N
        constant = tl.load(table + far)
        total, sums, highest = _over_keys(
            total, sums, highest, q, key, value, key_row, value_row, 0, near, positions, n_keys, scale, table,
            scales, curve, n_points, slope, constant, KIND, E, BLOCK_E, BLOCK_N, "constant", PRECISION, DIRECT,
        )  # fmt: skip
    if KIND == "curve":
        scales = tl.load(by_query + tl.minimum(rows, n_queries - 1))
        curve += head * n_points
    diagonal = tl.maximum((first + 1) // BLOCK_N * BLOCK_N, near)
    total, sums, highest = _over_keys(
        total, sums, highest, q, key, value, key_row, value_row, near, diagonal, positions, n_keys, scale, table,
        scales, curve, n_points, slope, constant, KIND, E, BLOCK_E, BLOCK_N, "full", PRECISION, DIRECT,
    )  # fmt: skip
    total, sums, highest = _over_keys(
        total, sums, highest, q, key, value, key_row, value_row, diagonal, tl.minimum(first + BLOCK_M, n_keys),
        positions, n_keys, scale, table, scales, curve, n_points, slope, constant, KIND, E, BLOCK_E, BLOCK_N,
        "diagonal", PRECISION, DIRECT,
    )  # fmt: skip
    tl.store(
        out + batch * out_batch + head * out_head + rows[:, None].to(tl.int64) * out_row + lanes[None, :],
        (total / sums[:, None]).to(out.dtype.element_ty),
        mask=inside,
    )


def biased(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | Curve, scale: float) -> Tensor:
    """Causal attention with a bias, [B, Q, H, E], contiguous.

    query:      [B, H, Q, E], of the last Q positions of K; float32, bfloat16 or float16.
    key, value: [B, G, K, E].
    bias:       a table over distances [H, N], N >= K; slopes [H]; or a curve.
    """
    batch, n_heads, n_queries, head_dim = query.shape
    n_keys = key.shape[2]
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    out = torch.empty(batch, n_queries, n_heads, head_dim, dtype=query.dtype, device=query.device)
    # A kernel never reads the arguments of other kinds of bias, but they must have the right type.
    unused = torch.empty(1, dtype=torch.float32, device=query.device)
    given: dict[str, Any] = dict.fromkeys(("table", "constant_from", "by_query", "curve", "slopes"), unused)
    n_points, table_head = 2, 0
    if isinstance(bias, Curve):
        kind, n_points = "curve", bias.curve_HP.shape[1]
        given["table"], given["by_query"] = bias.by_distance_N.float(), bias.by_query_Q.float().contiguous()
        given["curve"] = (bias.curve_HP.float() * _LOG2_E).contiguous()
    elif bias.ndim == 1:
        kind, given["slopes"] = "slopes", (-_LOG2_E * bias.float()).contiguous()
    else:
        kind = "table"
        table_HN = (bias.float() * _LOG2_E).contiguous()
        changes = (table_HN[:, 1:] != table_HN[:, :-1]) * torch.arange(1, table_HN.shape[1], device=bias.device)
        far_H = changes.amax(-1) if table_HN.shape[1] > 1 else torch.zeros(n_heads, device=bias.device)
        given["table"], given["constant_from"], table_head = table_HN, far_H.int(), table_HN.stride(0)
    exact = query.dtype == torch.float32
    block_e = max(16, 1 << (head_dim - 1).bit_length())
    block_m, block_n, warps, stages = _EXACT_TILE if exact else _TILES[kind][max(64, block_e)]
    with torch.cuda.device(query.device) if query.is_cuda else contextlib.nullcontext():
        _kernel[(triton.cdiv(n_queries, block_m), batch * n_heads)](
            query, key, value, out, *given.values(),
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], out.stride(0), out.stride(2), out.stride(1),
            table_head, n_points, n_heads, n_heads // key.shape[1], n_queries, n_keys, scale * _LOG2_E,
            KIND=kind, E=head_dim, BLOCK_E=block_e, BLOCK_M=block_m, BLOCK_N=block_n,
            PRECISION="tf32x3" if exact else "tf32", DIRECT=query.is_cuda, num_warps=warps, num_stages=stages,
        )  # fmt: skip
    return out
