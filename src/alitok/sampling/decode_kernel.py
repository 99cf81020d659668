"""One Triton kernel for the cache write and the attention of a decoding step."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from alitok.common.devices import float32_products
from alitok.sampling.cache import KeyValueCache, halves

BLOCK = 32  # keys that a program reads at a time
LEAST_PRODUCT = 16  # rows and columns of the smallest matrix product that Triton takes


@triton.jit
def _one_token(  # type: ignore[no-untyped-def]
    q, k, v, keys, values, weights, starts, out,
    heads, room, span, stride, scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, N: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    # One program per (row, head). It stores k and v at the row's position and attends to 0..position.
    pid = tl.program_id(0).to(tl.int64)
    at = tl.load(starts + (pid // heads) * stride)
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
    # The current token comes from registers: the kernel reads nothing that it has written.
    top = tl.sum(q1 * k1.to(tl.float32)) + tl.sum(q2 * k2.to(tl.float32))
    total = 1.0
    share = 1.0
    if WEIGHTED:
        share = tl.load(weights + (pid // heads) * span + at).to(tl.float32)
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
            p = p * tl.load(weights + (pid // heads) * span + place, mask=there, other=0.0).to(tl.float32)
        vv1 = tl.load(values + row + a[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        vv2 = tl.load(values + row + D1 + b[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        acc1 = acc1 * shrink + tl.sum(p[:, None] * vv1, 0)
        acc2 = acc2 * shrink + tl.sum(p[:, None] * vv2, 0)
        top = higher
    tl.store(out + pid * D + a, (acc1 / total).to(out.dtype.element_ty))
    tl.store(out + pid * D + D1 + b, (acc2 / total).to(out.dtype.element_ty))


@triton.jit
def _window(  # type: ignore[no-untyped-def]
    q, k, v, keys, values, starts, out,
    heads, room, stride, scale,
    L: tl.constexpr, LP: tl.constexpr, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    # As above for L tokens at positions at .. at + L - 1 of a row. LP is L padded to a size that a product takes.
    # Products are in float32. TF32 is exact for keys, queries and values in bfloat16, and rounds attention to 10 bits.
    pid = tl.program_id(0).to(tl.int64)
    at = tl.load(starts + (pid // heads) * stride)
    a, b, n, i = tl.arange(0, D1), tl.arange(0, D2), tl.arange(0, N), tl.arange(0, LP)
    base, own = pid * room * D, pid * L * D
    rows, columns = i[:, None] * D, i[None, :] * D
    real, real_columns = i[:, None] < L, i[None, :] < L
    q1 = tl.load(q + own + rows + a[None, :], mask=real, other=0.0).to(tl.float32)
    q2 = tl.load(q + own + rows + D1 + b[None, :], mask=real, other=0.0).to(tl.float32)
    v1 = tl.load(v + own + rows + a[None, :], mask=real, other=0.0)
    v2 = tl.load(v + own + rows + D1 + b[None, :], mask=real, other=0.0)
    k1 = tl.load(k + own + columns + a[:, None], mask=real_columns, other=0.0)  # (D1, LP), transposed
    k2 = tl.load(k + own + columns + D1 + b[:, None], mask=real_columns, other=0.0)
    here = base + at * D
    tl.store(keys + here + columns + a[:, None], k1, mask=real_columns)
    tl.store(keys + here + columns + D1 + b[:, None], k2, mask=real_columns)
    tl.store(values + here + rows + a[None, :], v1, mask=real)
    tl.store(values + here + rows + D1 + b[None, :], v2, mask=real)

    among = tl.dot(q1, k1.to(tl.float32), input_precision=PRECISION) + tl.dot(
        q2, k2.to(tl.float32), input_precision=PRECISION
    )
    among = tl.where((i[None, :] <= i[:, None]) & real_columns, among * scale, float("-inf"))
    top = tl.max(among, 1)
    part = tl.exp(among - top[:, None])
    total = tl.sum(part, 1)
    acc1 = tl.dot(part, v1.to(tl.float32), input_precision=PRECISION)
    acc2 = tl.dot(part, v2.to(tl.float32), input_precision=PRECISION)
    for start in range(0, at, N):
        place = start + n
        there = place < at
        turned = base + place[None, :] * D
        kk1 = tl.load(keys + turned + a[:, None], mask=there[None, :], other=0.0).to(tl.float32)
        kk2 = tl.load(keys + turned + D1 + b[:, None], mask=there[None, :], other=0.0).to(tl.float32)
        scores = tl.dot(q1, kk1, input_precision=PRECISION) + tl.dot(q2, kk2, input_precision=PRECISION)
        scores = tl.where(there[None, :], scores * scale, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp(top - higher)
        p = tl.exp(scores - higher[:, None])
        total = total * shrink + tl.sum(p, 1)
        row = base + place[:, None] * D
        vv1 = tl.load(values + row + a[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        vv2 = tl.load(values + row + D1 + b[None, :], mask=there[:, None], other=0.0).to(tl.float32)
        acc1 = acc1 * shrink[:, None] + tl.dot(p, vv1, input_precision=PRECISION)
        acc2 = acc2 * shrink[:, None] + tl.dot(p, vv2, input_precision=PRECISION)
        top = higher
    type = out.dtype.element_ty
    tl.store(out + own + rows + a[None, :], (acc1 / total[:, None]).to(type), mask=real)
    tl.store(out + own + rows + D1 + b[None, :], (acc2 / total[:, None]).to(type), mask=real)


@torch.library.custom_op("alitok::decode_attention", mutates_args=("stored",))
def decode_attention(
    query: Tensor, key: Tensor, value: Tensor, stored: Tensor, starts: Tensor, weights: Tensor | None
) -> Tensor:
    """Store key and value, and attend. The position is read on the device, so one graph serves all positions.

    Args:
        query, key, value: (rows, heads, L, D).
        stored: keys and values, (2, rows * heads, room, D), each contiguous.
        starts: (1,) or (rows,) int64, position of a row's first token.
        weights: (rows, 1, at least room) factors on the values, or None; for L = 1 only.

    Returns:
        (rows, heads, L, D).
    """
    rows, heads, length, dim = query.shape
    keys, values = stored
    query, key, value = (part.to(keys.dtype).contiguous() for part in (query, key, value))
    out, room = _like(query, keys), keys.shape[1]
    parts = halves(dim)
    if parts is None:
        raise ValueError(f"a head of {dim} channels is not the sum of two powers of two of at least 16")
    sizes = {"D": dim, "D1": parts[0], "D2": parts[1], "N": BLOCK}
    stride = 0 if len(starts) == 1 else starts.stride(0)
    kernel: Any
    if length == 1:
        kernel = _one_token[(rows * heads,)]
        kernel(
            query, key, value, keys, values, values if weights is None else weights, starts, out,
            heads, room, room if weights is None else weights.shape[-1], stride, dim**-0.5,
            **sizes, WEIGHTED=weights is not None, num_warps=1,
        )  # fmt: skip
    else:
        padded = max(LEAST_PRODUCT, triton.next_power_of_2(length))
        kernel = _window[(rows * heads,)]
        kernel(
            query, key, value, keys, values, starts, out,
            heads, room, stride, dim**-0.5, L=length, LP=padded, **sizes,
            PRECISION="ieee" if keys.dtype == torch.float32 else "tf32", num_warps=4,
        )  # fmt: skip
    return out


@decode_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, stored: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    return _like(query, stored)


def _like(query: Tensor, stored: Tensor) -> Tensor:
    return torch.empty(query.shape, dtype=stored.dtype, device=query.device)


@torch.no_grad()
@float32_products(tf32=False)  # the plain products must be exact, even if the sampling is not
def agrees(
    device: torch.device, dim: int = 64, dtype: torch.dtype = torch.float32, length: int = 1, room: int = 70
) -> bool:
    """Whether the kernel agrees with `KeyValueCache`'s plain products in float32 at each position."""
    rows, heads = 3, 2
    weighted = length == 1
    plain = KeyValueCache(1, rows, heads, room, dim, device, torch.float32, weighted)
    fused = KeyValueCache(1, rows, heads, room, dim, device, dtype, weighted, "triton")
    plain.resize(room)
    fused.resize(room)
    noise = torch.Generator(device).manual_seed(0)
    if plain.value_weights is not None and fused.value_weights is not None:
        fused.value_weights.uniform_(generator=noise)
        plain.value_weights.copy_(fused.value_weights)
    worst = torch.zeros((), device=device)
    for place in range(0, room - length + 1, length):
        positions = torch.arange(place, place + length, device=device)
        if length > 1:
            # rows differ: each starts one position before the previous row, so it writes some positions again
            shift = torch.arange(rows, device=device).clamp(max=place)[:, None]
            positions = positions - shift
        query, key, value = torch.randn(3, rows, heads, length, dim, generator=noise, device=device).to(dtype)
        plain.start_step(positions)
        fused.start_step(positions)
        expected = plain.attend(0, query.float(), key.float(), value.float())
        found = fused.attend(0, query, key, value)
        worst = torch.maximum(worst, (found - expected).abs().max())
    same = torch.equal(fused.keys.float(), plain.keys) and torch.equal(fused.values.float(), plain.values)
    return same and bool(worst < (1e-5 if dtype == torch.float32 else 0.02))  # bfloat16 has 8 bits, values reach 4
