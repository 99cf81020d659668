"""A static key/value cache: one allocation for the whole sequence, of which a step reads the filled part."""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of every layer, allocated once, and attention of one position over those before it.

    The memory is laid out anew a few times in a sequence, so that the part in use is always contiguous: kernels then
    read it where it lies, and a captured step serves all positions of one layout.

    Args:
        layers, rows, heads, max_length, head_dim: `rows` sequences side by side.
        weighted: keep `value_weights` (rows, 1, max_length), factors on the values when they are used (the stored
            values stay as they are); ones until a guidance rule sets them.
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
    ) -> None:
        self.shape = (layers, rows * heads, head_dim)
        self.memory = torch.zeros(2, layers * rows * heads * max_length * head_dim, device=device, dtype=dtype)
        self.value_weights = torch.ones(rows, 1, max_length, device=device, dtype=dtype) if weighted else None
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

    def start_step(self, position: Tensor) -> None:
        """Says where the next step writes: position (1,) int64 on the cache's device, below `length`."""
        self.position = position
        beyond = torch.arange(self.length, device=position.device) > position
        self.mask = torch.zeros(1, self.length, 1, dtype=self.memory.dtype, device=position.device)
        self.mask.masked_fill_(beyond[None, :, None], -torch.inf)

    def layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """Keys and values (rows * heads, length, head_dim) of a layer, the position, the mask (1, length, 1) that is
        added to scores, and the weights (rows, 1, length) of the values or None."""
        weights = None if self.value_weights is None else self.value_weights[:, :, : self.length]
        return self.keys[layer], self.values[layer], self.position, self.mask, weights

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores key and value (rows, heads, 1, head_dim) at the position; attention over 0..position, same shape.

        Products of a matrix and a vector per head: for one query, on a CPU, two to five times faster than the fused
        kernel, which is made for many. In a bfloat16 cache scores and attention are rounded to bfloat16 too.
        """
        rows, heads, _, dim = query.shape
        keys, values, position, mask, weights = self.layer(layer)
        keys.index_copy_(1, position, key.flatten(0, 1))
        values.index_copy_(1, position, value.flatten(0, 1))
        # (.., 1, dim) turned, not reshaped to (.., dim, 1): MKL takes the strides of the latter for a slow case
        scores = torch.baddbmm(mask, keys, query.reshape(-1, 1, dim).mT, alpha=dim**-0.5)
        attention = scores.view(rows, heads, self.length).softmax(-1)
        if weights is not None:
            attention = attention * weights
        return torch.bmm(attention.view(-1, 1, self.length), values).view(rows, heads, 1, dim)
