"""A static key/value cache: one allocation for the whole sequence, of which a step reads the filled part."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


def halves(dim: int) -> tuple[int, int] | None:
    """A head's channels as two powers of two of at least 16, which Triton's blocks need; None if there are none."""
    powers = [2**i for i in range(4, 9)]
    return next(((one, dim - one) for one in reversed(powers) if dim - one in powers), None)


class KeyValueCache:
    """Keys and values of every layer, allocated once, and attention of a few positions over those before them.

    The memory is laid out anew a few times in a sequence, so that the part in use is always contiguous: kernels then
    read it where it lies, and a captured step serves all positions of one layout.

    A step may write L positions at once, and each row its own. Keys beyond a query's position are masked, so what an
    earlier step wrote there needs no removal: a later step overwrites it.

    Args:
        layers, rows, heads, max_length, head_dim: `rows` sequences side by side.
        kernel: of a decoding step, by name (`common.kernels`); all agree but for rounding.
        weighted: keep `value_weights` (rows, 1, max_length), factors on the values when they are used (the stored
            values stay as they are); ones until a guidance rule sets them.

    Attributes:
        sources: (rows, max_length) int64: position p keeps the key and value of position sources[:, p]; None if all
            keep their own.
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
        self.keys, self.values = self._layout(0)

    def _layout(self, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values (layers, rows * heads, length, head_dim) at the beginning of the memory."""
        layers, sequences, dim = self.shape
        used = self.memory[:, : layers * sequences * length * dim].view(2, layers, sequences, length, dim)
        return used[0], used[1]

    def resize(self, length: int) -> None:
        """Makes room for `length` positions. Growing keeps the stored entries, anything else discards them.

        The new room is zero: steps mask it, but 0 x NaN would bring back an earlier sequence's broken numbers. Room
        beyond the filled part costs its reading in every step.
        """
        held, kept = (self.keys, self.values), self.length if length > self.length else 0
        self.keys, self.values = self._layout(length)
        for old, new in zip(held, (self.keys, self.values), strict=True):
            # from the end, so that nothing is overwritten before it moves
            for layer in reversed(range(len(old) if kept else 0)):
                new[layer, :, :kept] = old[layer].clone()
            new[:, :, kept:] = 0
        self.length = length

    def start_step(self, positions: Tensor) -> None:
        """Sets where the next step writes.

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
        """Whether a step reads the filled part alone, however long the cache is: no mask, and no growing."""
        return self.kernel == "triton" and self.sources is None

    def layer(self, layer: int) -> "LayerCache":
        """The part of one layer in the present step."""
        weights = None if self.value_weights is None else self.value_weights[:, :, : self.length]
        return LayerCache(self.keys[layer], self.values[layer], self.positions, self.mask, weights, self.source)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores key and value (rows, heads, L, head_dim) at the positions; attention over all up to each, same shape.

        The L positions of a row follow one another. "plain" is products of a matrix and a vector per head: for one
        query, on the CPU of docs/performance.md, two to five times faster than "fused", which is made for many. In a
        bfloat16 cache it rounds scores and attention to bfloat16 too.
        """
        rows, heads, length, dim = query.shape
        if self.reads_filled:
            from alitok.sampling.decode_kernel import attend

            starts = self.positions[..., 0].reshape(-1)
            return attend(query, key, value, self.keys[layer], self.values[layer], starts, self.value_weights)
        part = self.layer(layer)
        part.write(key, value)
        if self.kernel == "fused" and part.weights is None:
            keys, values = (stored.unflatten(0, (rows, heads)) for stored in (part.keys, part.values))
            mask = part.mask.mT.unflatten(0, (-1, heads if len(part.mask) > 1 else 1))
            return F.scaled_dot_product_attention(query, keys, values, mask)
        # (.., L, dim) turned, not reshaped to (.., dim, L): MKL takes the strides of the latter for a slow case
        scores = torch.baddbmm(part.mask, part.keys, query.reshape(-1, length, dim).mT, alpha=dim**-0.5)
        attention = scores.mT.reshape(rows, heads, length, self.length).softmax(-1)
        if part.weights is not None:
            attention = attention * part.weights[:, None]
        return torch.bmm(attention.view(-1, length, self.length), part.values).view(rows, heads, length, dim)


class LayerCache(NamedTuple):
    """One layer of a `KeyValueCache` in one step; as a cache of its own it attends in a form that a compiler can fuse.

    Attributes:
        keys, values: (rows * heads, length, head_dim).
        positions: as `start_step` got them.
        mask: (1, length, L) or (rows * heads, length, L), added to scores.
        weights: (rows, 1, length) on the values, or None.
        source: (rows, L), the position whose key and value each written position takes, or None.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    mask: Tensor
    weights: Tensor | None
    source: Tensor | None

    def write(self, key: Tensor, value: Tensor) -> None:
        """Stores key and value (rows, heads, L, head_dim) at the positions."""
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
        """As `KeyValueCache.attend`, by sums in float32: compiled, one pass each over keys and values."""
        rows, heads, length, dim = query.shape
        self.write(key, value)
        query = query.reshape(-1, length, 1, dim).float()
        scores = (self.keys[:, None].float() * query).sum(-1) * dim**-0.5 + self.mask.mT.float()
        attention = scores.softmax(-1)
        if self.weights is not None:
            attention = (attention.unflatten(0, (rows, heads)) * self.weights[:, None]).flatten(0, 1)
        result = (attention[..., None] * self.values[:, None].float()).sum(2)
        return result.to(value.dtype).view(rows, heads, length, dim)
