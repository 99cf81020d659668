"""A static key/value cache: one allocation for the whole sequence, the filled part is what a step reads."""

import torch
from torch import Tensor


class KeyValueCache:
    """Keys and values of every layer, (B, heads, max_length, head_dim) each, allocated once and reused."""

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        max_length: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (layers, batch, heads, max_length, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    def append(self, layer: int, key: Tensor, value: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Stores (B, heads, 1, head_dim) at `position`; returns positions 0..position, views without a copy."""
        self.keys[layer, :, :, position] = key[:, :, 0]
        self.values[layer, :, :, position] = value[:, :, 0]
        return self.keys[layer, :, :, : position + 1], self.values[layer, :, :, : position + 1]
