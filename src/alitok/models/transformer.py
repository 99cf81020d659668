"""Shared parts of the transformers: attention, the tokenizer's block, rotary positions, initial weights."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.common.kernels import chosen

# On a CPU the fused kernel's bfloat16 backward is two to five times slower than the plain formula, and it has no
# dropout. For longer sequences the plain formula's weights take too much memory.
PLAIN_ATTENTION_LENGTH = 1024
CAUSAL_BLOCK = 160  # queries at a time, so that most masked products are never computed

# "plain" or "fused" for training on a CPU; None = the rule in the comment above. Other processors may differ.
attention_kernel = chosen("attention")

Init = Literal["paper", "fan-in", "local"]


def on_cpu(x: Tensor) -> bool:
    """Whether to use the code tuned for a CPU. `alitok describe` replaces this function to count a GPU's cost."""
    return x.device.type == "cpu"


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product self-attention by the fastest kernel for training.

    Args:
        q, k, v: (B, heads, T, head_dim).
        causal: position i sees only 0..i.
        dropout: probability of dropping an attention weight.

    Returns:
        (B, heads, T, head_dim).
    """
    length = q.shape[-2]
    plain = attention_kernel != "fused" if q.dtype == torch.bfloat16 or dropout > 0 else attention_kernel == "plain"
    if not (plain and on_cpu(q) and q.requires_grad) or length > PLAIN_ATTENTION_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)
    blocks = -(-length // CAUSAL_BLOCK) if causal else 1
    size = -(-length // blocks)
    with torch.autocast("cpu", enabled=False):  # else the steps between the two products run in float32
        parts = []
        for first in range(0, length, size):
            last = min(first + size, length)
            seen = last if causal else length
            parts.append(_plain(q[:, :, first:last], k[:, :, :seen], v[:, :, :seen], causal, dropout))
        return torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _plain(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d)) v. If causal, the last query and the last key have the same position."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:
        queries, keys = scores.shape[-2:]
        scores += scores.new_full((queries, keys), float("-inf")).triu_(1 + keys - queries)
    weights = scores.softmax(-1)
    if dropout > 0:
        weights = weights * keep_mask(weights, dropout)
        v = v / (1 - dropout)
    return weights @ v


def keep_mask(x: Tensor, dropout: float) -> Tensor:
    """0 with probability `dropout` (rounded to a multiple of 2^-16), else 1; shape and type of x, on a CPU.

    Four numbers share a draw of 64 bits, which takes a fifth of the time of torch's dropout.
    """
    count = x.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    mask = torch.empty(x.shape, dtype=x.dtype)
    return torch.ge(bits[:count].view(x.shape), round(dropout * 2**16) - 2**15, out=mask)


class Dropout(nn.Dropout):
    """`nn.Dropout`, but with `keep_mask` on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if not on_cpu(x) or not self.training or not 0 < self.p < 1:
            return super().forward(x)
        return x * keep_mask(x, self.p) / (1 - self.p)


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, width). If causal, position i sees only 0..i."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).chunk(3, dim=-1)  # before the split into heads: one pass less over the gradient
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in parts)
        x = attend(q, k, v, self.causal)
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)) with a hidden width of 4 x width."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def init_weights(model: nn.Module, init: Init = "paper") -> None:
    """Draws the weights of all linear, convolution and embedding layers; biases are 0.

    "paper" (AliTok): normal with standard deviation 0.02. "fan-in" and "local": variance 1 / inputs of the layer, but
    embeddings as in "paper".
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02 if init == "paper" else layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)


def position_std(width: int, init: Init) -> float:
    """Initial standard deviation of learned tokens and positions."""
    return width**-0.5 if init == "paper" else 0.7


def rope_angles(positions: Tensor, dim: int, base: float = 10000.0) -> Tensor:
    """Angles position x base^(-2j / dim) for j = 0 .. dim/2 - 1.

    Args:
        positions: (T,).
        dim: number of rotated channels; even.

    Returns:
        (T, dim / 2) float32.
    """
    frequencies = base ** (-torch.arange(0, dim, 2, dtype=torch.float32, device=positions.device) / dim)
    return torch.outer(positions.float(), frequencies)


def generator_rope(num_prefix: int, grid: tuple[int, int], head_dim: int, base: float = 10000.0) -> Tensor:
    """The generator's table for [class, prefix tokens, image tokens in raster order].

    The class token has cos = sin = 0, so its query and key vanish (published weights depend on it). Prefix tokens
    have 1D positions 0..K-1 over the whole head. Image tokens have 2D positions, numbered from K: the row in the first
    half of the head, the column in the second.

    Returns:
        (1 + K + H*W, head_dim / 2, 2) float32, last axis (cos, sin).

    Raises:
        ValueError: head_dim is not a multiple of 4.
    """
    if head_dim % 4:
        raise ValueError(f"2D rotary positions need a head dimension that divides by 4, not {head_dim}")
    device = torch.device("cpu")  # even in a meta-device context: nothing fills the table later
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
    # Compiled code fuses only real numbers. And a CPU's product of complex numbers rounds the last of an odd number of
    # eights differently in another layout, but a draw must not depend on the layout.
    odd_size = pairs.shape[-2] % 8 != 0 and not x.requires_grad
    if torch.compiler.is_compiling() or odd_size:
        (even, odd), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    # one pass over memory, not seven
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table)).flatten(-2)
