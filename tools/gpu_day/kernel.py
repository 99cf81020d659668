"""Cache write and attention of one decoding step in one Triton kernel: a candidate, held against `KeyValueCache`."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HALVES = {80: (64, 16), 64: (32, 32), 48: (32, 16)}  # a head's channels as two powers of two


@triton.jit
def decode_attention(
    q, k, v, keys, values, weights, position, out,
    heads, room, scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, N: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    # one program per (row, head): stores k, v at `position`, attends over 0..position
    pid = tl.program_id(0).to(tl.int64)
    at = tl.load(position)
    a, b, n = tl.arange(0, D1), tl.arange(0, D2), tl.arange(0, N)
    base = pid * room * D
    q1 = tl.load(q + pid * D + a).to(tl.float32) * scale
    q2 = tl.load(q + pid * D + D1 + b).to(tl.float32) * scale
    k1, k2 = tl.load(k + pid * D + a), tl.load(k + pid * D + D1 + b)
    v1, v2 = tl.load(v + pid * D + a), tl.load(v + pid * D + D1 + b)
    tl.store(keys + base + at * D + a, k1)
    tl.store(keys + base + at * D + D1 + b, k2)
    tl.store(values + base + at * D + a, v1)
    tl.store(values + base + at * D + D1 + b, v2)
    # the present token first, from registers: nothing that is written here is read again here
    top = tl.sum(q1 * k1.to(tl.float32)) + tl.sum(q2 * k2.to(tl.float32))
    total = 1.0
    share = 1.0
    if WEIGHTED:
        share = tl.load(weights + (pid // heads) * room + at).to(tl.float32)
    acc1, acc2 = share * v1.to(tl.float32), share * v2.to(tl.float32)
    for start in range(0, at, N):
        place = start + n
        there = place < at
        row = base + place[:, None] * D
        kk1 = tl.load(keys + row + a[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        kk2 = tl.load(keys + row + D1 + b[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        scores = tl.sum(kk1 * q1[None, :], 1) + tl.sum(kk2 * q2[None, :], 1)
        scores = tl.where(there, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        shrink = tl.exp(top - higher)
        p = tl.exp(scores - higher)
        total = total * shrink + tl.sum(p, 0)
        if WEIGHTED:
            p = p * tl.load(weights + (pid // heads) * room + place, mask=there, other=0.0).to(tl.float32)
        vv1 = tl.load(values + row + a[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        vv2 = tl.load(values + row + D1 + b[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        acc1 = acc1 * shrink + tl.sum(p[:, None] * vv1, 0)
        acc2 = acc2 * shrink + tl.sum(p[:, None] * vv2, 0)
        top = higher
    tl.store(out + pid * D + a, (acc1 / total).to(out.dtype.element_ty))
    tl.store(out + pid * D + D1 + b, (acc2 / total).to(out.dtype.element_ty))


def attend(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, position: Tensor, weights: Tensor | None
) -> Tensor:
    """As `KeyValueCache.attend`.

    Args:
        query, key, value: (rows, heads, 1, D).
        keys, values: (rows * heads, room, D), contiguous.
        position: (1,) int64.
        weights: (rows, 1, room) of the values, or None.
    """
    rows, heads, _, dim = query.shape
    query, key, value = (part.contiguous() for part in (query, key, value))
    out = torch.empty_like(value)
    halves = dict(zip(("D1", "D2"), HALVES[dim], strict=True))
    kernel: Any = decode_attention[(rows * heads,)]
    kernel(
        query,
        key,
        value,
        keys,
        values,
        values if weights is None else weights,
        position,
        out,
        heads,
        keys.shape[1],
        dim**-0.5,
        D=dim,
        **halves,
        N=32,
        WEIGHTED=weights is not None,
        num_warps=1,
    )
    return out
