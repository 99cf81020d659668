"""A static key/value cache: allocated once for the whole sequence; a step reads the filled part."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def halves(dim: int) -> tuple[int, int] | None:
    """A head's channels as two powers of two of at least 16, which Triton's blocks need; None if there are none."""
    powers = [2**i for i in range(4, 9)]
    return next(((one, dim - one) for one in reversed(powers) if dim - one in powers), None)


class KeyValueCache:
    """Keys and values of every layer, and attention of a few positions over those before them.

    The memory gets a new layout a few times per sequence, so that the part in use is always contiguous: kernels read
    it in place, and one captured step serves all positions of a layout.

    A step may write L positions at once, different ones in each row. Keys beyond a query's position are masked, so
    stale entries there do no harm. Later steps overwrite them.

    Args:
        layers, rows, heads, max_length, head_dim: sizes; a row is a sequence.
        kernel: name of the decoding kernel (`common.kernels`); all agree up to rounding.
        weighted: keep `value_weights` (rows, 1, max_length): factors on the values in attention, ones until a guidance
            rule sets them. The stored values do not change.

    Attributes:
        sources: (rows, max_length) int64: position p stores the key and value of position sources[:, p]; None if each
            stores its own.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        max_length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
        weighted: bool = False,
        kernel: str = "plain",
    ) -> None:
        if kernel == "triton" and halves(head_dim) is None:
            kernel = "plain"
        self.kernel = kernel
        self.shape = (layers, rows * heads, head_dim)
        self.heads = heads
        self.memory = torch.zeros(2, layers * rows * heads * max_length * head_dim, device=device, dtype=dtype)
        self.value_weights = torch.ones(rows, 1, max_length, device=device, dtype=dtype) if weighted else None
        self.sources: Tensor | None = None
        self.length = 0
        self._lay_out(0)

    def _lay_out(self, length: int) -> None:
        """Places (2, layers, rows * heads, length, head_dim) at the start of the memory."""
        layers, sequences, dim = self.shape
        self.stored = self.memory[:, : layers * sequences * length * dim].view(2, layers, sequences, length, dim)
        self.keys, self.values = self.stored

    def resize(self, length: int) -> None:
        """Make room for `length` positions. Growing keeps the stored entries, anything else discards them.

        New positions are zero: steps mask them, but 0 x NaN would let an earlier sequence's NaN through. Unless
        `reads_filled`, every step also reads the positions that are not filled yet.
        """
        held, kept = self.stored, self.length if length > self.length else 0
        self._lay_out(length)
        for old, new in zip(held, self.stored, strict=True):
            # from the end, so that nothing is overwritten before it moves
            for layer in reversed(range(len(old) if kept else 0)):
                new[layer, :, :kept] = old[layer].clone()
            new[:, :, kept:] = 0
        self.length = length

    def start_step(self, positions: Tensor) -> None:
        """Set where the next step writes.

        Args:
            positions: (L,) int64 on the cache's device, the same for all rows, or (rows, L); below `length`.
        """
        self.positions = positions
        self.source = None
        if self.sources is not None:
            self.source = self.sources.gather(1, positions.expand(len(self.sources), -1))
        if self.reads_filled:
            return
        places = torch.arange(self.length, device=positions.device)
        beyond = places[:, None] > positions[..., None, :]  # (length, L), or (rows, length, L)
        mask = torch.zeros(beyond.shape, dtype=self.memory.dtype, device=positions.device)
        mask.masked_fill_(beyond, -torch.inf)
        self.mask = mask[None] if mask.ndim == 2 else mask.repeat_interleave(self.heads, 0)

    @property
    def reads_filled(self) -> bool:
        """Whether a step reads only the filled part of the cache, so that it needs no mask and no growth."""
        return self.kernel == "triton" and self.sources is None

    def layer(self, layer: int) -> "LayerCache | KernelLayer":
        """One layer of the cache in the current step."""
        if self.reads_filled:
            starts = self.positions[..., 0].reshape(-1)
            return KernelLayer(self.stored[:, layer], starts, self.value_weights)
        weights = None if self.value_weights is None else self.value_weights[:, :, : self.length]
        return LayerCache(self.keys[layer], self.values[layer], self.positions, self.mask, weights, self.source)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Store key and value (rows, heads, L, head_dim); attend from each position to all up to it, same shape.

        The L positions of a row are consecutive. "plain" and "turned" multiply a matrix and a vector per head: for one
        query, on the CPUs of docs/performance.md, they are two to five times faster than "fused", which is made for
        many. In a bfloat16 cache they round scores and attention to bfloat16 too.
        """
        part = self.layer(layer)
        if isinstance(part, KernelLayer):
            return part.attend(0, query, key, value)
        part.write(key, value)
        if query.shape[2] == 1 or query.device.type != "cpu":
            return self._products(part, query, part.mask)
        # One query at a time: a CPU's products of several queries round differently, and a window must draw the same.
        steps = [self._products(part, query[:, :, i : i + 1], part.mask[..., i : i + 1]) for i in range(query.shape[2])]
        return torch.cat(steps, dim=2)

    def _products(self, part: "LayerCache", query: Tensor, mask: Tensor) -> Tensor:
        rows, heads, length, dim = query.shape
        if self.kernel == "fused" and part.weights is None:
            keys, values = (stored.unflatten(0, (rows, heads)) for stored in (part.keys, part.values))
            mask = mask.mT.unflatten(0, (-1, heads if len(mask) > 1 else 1))
            return F.scaled_dot_product_attention(query, keys, values, mask)
        query = query.reshape(-1, length, dim)
        if self.kernel == "turned":
            scores = torch.baddbmm(mask.mT, query, part.keys.mT, alpha=dim**-0.5)
        else:
            # (.., L, dim) transposed, not reshaped to (.., dim, L): the latter's strides put MKL on a slow path
            scores = torch.baddbmm(mask, part.keys, query.mT, alpha=dim**-0.5).mT
        attention = scores.reshape(rows, heads, length, self.length).softmax(-1)
        if part.weights is not None:
            attention = attention * part.weights[:, None]
        return torch.bmm(attention.view(-1, length, self.length), part.values).view(rows, heads, length, dim)


class KernelLayer(NamedTuple):
    """One layer of a `KeyValueCache` in one step, for Triton's kernel. Its `attend` is one operation to a compiler.

    Attributes:
        stored: keys and values, (2, rows * heads, length, head_dim). One tensor: a compiler may lose what an operation
            writes into two that share their memory.
        starts: (1,) or (rows,), the first position that each row writes.
        weights: (rows, 1, at least length) factors on the values, or None.
    """

    stored: Tensor
    starts: Tensor
    weights: Tensor | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `KeyValueCache.attend`."""
        from alitok.sampling.decode_kernel import decode_attention

        return decode_attention(query, key, value, *self)


class LayerCache(NamedTuple):
    """One layer of a `KeyValueCache` in one step. Its `attend` has a form that a compiler can fuse.

    Attributes:
        keys, values: (rows * heads, length, head_dim).
        positions: the argument of `start_step`.
        mask: (1, length, L) or (rows * heads, length, L), added to scores.
        weights: (rows, 1, length) factors on the values, or None.
        source: (rows, L), the position whose key and value each written position takes, or None.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    mask: Tensor
    weights: Tensor | None
    source: Tensor | None

    def write(self, key: Tensor, value: Tensor) -> None:
        """Store key and value (rows, heads, L, head_dim) at the positions."""
        for stored, new in ((self.keys, key.flatten(0, 1)), (self.values, value.flatten(0, 1))):
            if self.positions.ndim == 1:
                stored.index_copy_(1, self.positions, new)
            else:
                stored.scatter_(1, self._index(self.positions, key), new)
            if self.source is not None:
                kept = stored.gather(1, self._index(self.source, key))
                stored.scatter_(1, self._index(self.positions, key), kept)

    def _index(self, positions: Tensor, key: Tensor) -> Tensor:
        """Positions (L,) or (rows, L) as an index (rows * heads, L, head_dim) into keys or values."""
        rows, heads, _, dim = key.shape
        return positions.expand(rows, -1).repeat_interleave(heads, 0)[..., None].expand(-1, -1, dim)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As `KeyValueCache.attend`, with sums in float32: compiled, one pass over keys and one over values."""
        rows, heads, length, dim = query.shape
        self.write(key, value)
        query = query.reshape(-1, length, 1, dim).float()
        scores = (self.keys[:, None].float() * query).sum(-1) * dim**-0.5 + self.mask.mT.float()
        attention = scores.softmax(-1)
        if self.weights is not None:
            attention = (attention.unflatten(0, (rows, heads)) * self.weights[:, None]).flatten(0, 1)
        result = (attention[..., None] * self.values[:, None].float()).sum(2)
        return result.to(value.dtype).view(rows, heads, length, dim)
