"""Rotary positions: a table of (cos, sin) per position and channel pair, and the rotation."""

import torch
from torch import Tensor


def rope_angles(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Angles position x base^(-2j / dim) for j = 0 .. dim/2 - 1.

    Args:
        positions: (T,) positions.
        dim: channels that are rotated; even.

    Returns:
        (T, dim / 2) float32.
    """
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
    return torch.outer(positions.float(), frequencies)


def generator_rope(num_prefix: int, grid: tuple[int, int], head_dim: int, base: float = 10000.0) -> Tensor:
    """The generator's table for [class, prefix tokens, image tokens in raster order].

    The class token has cos = sin = 0, so its query and key vanish (published weights depend on it). Prefix tokens
    have 1D positions 0..K-1 over the whole head; image tokens 2D positions, rows and columns numbered from K on, the
    row in the first half of the head and the column in the second.

    Returns:
        (1 + K + H*W, head_dim / 2, 2) float32, last axis (cos, sin).

    Raises:
        ValueError: head_dim does not divide by 4.
    """
    if head_dim % 4:
        raise ValueError(f"2D rotary positions need a head dimension that divides by 4, not {head_dim}")
    device = torch.device("cpu")  # also under a meta-device context: the table is small and never initialised later
    height, width = grid
    prefix = rope_angles(torch.arange(num_prefix, device=device), head_dim, base)
    rows = rope_angles(torch.arange(height, device=device) + num_prefix, head_dim // 2, base)
    columns = rope_angles(torch.arange(width, device=device) + num_prefix, head_dim // 2, base)
    image = torch.cat([rows.repeat_interleave(width, dim=0), columns.repeat(height, 1)], dim=1)
    angles = torch.cat([prefix, image])
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(1, *table.shape[1:], device=device), table])


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates adjacent channel pairs (2j, 2j + 1) in float32.

    Args:
        x: (B, heads, T, head_dim).
        table: (T, head_dim / 2, 2) as from `generator_rope`.

    Returns:
        float32, shape of x.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # which fuse real numbers only
        (even, odd), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    # one pass over memory, not seven
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2)
