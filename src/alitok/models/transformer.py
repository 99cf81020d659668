"""The pre-LN transformer block of the tokenizer (ViT: LayerNorm, biases, exact GELU)."""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# On a CPU the fused kernel's bfloat16 backward is about five times slower than the plain formula for short sequences.
PLAIN_ATTENTION_LENGTH = 256

Init = Literal["paper", "local"]


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, dropout: float = 0.0) -> Tensor:
    """Scaled dot-product self-attention by the fastest kernel for training.

    Args:
        q, k, v: (B, heads, T, head_dim).
        causal: position i sees 0..i only.
        dropout: probability, on the attention weights.

    Returns:
        (B, heads, T, head_dim).
    """
    length = q.shape[-2]
    plain = q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.requires_grad
    if not plain or length > PLAIN_ATTENTION_LENGTH:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=dropout)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if causal:
        hidden = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, float("-inf"))
    return F.dropout(scores.softmax(-1), dropout).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention over (B, T, width); `causal` lets position i see 0..i only."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        self.heads = heads
        self.causal = causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=self.heads)
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
    """Draws the weights of all linear, convolution and embedding layers; biases 0.

    "paper" (AliTok): N(0, 0.02). "local": variance 1 / inputs of the layer, embeddings as the paper.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02 if init == "paper" else layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight, std=0.02)


def position_std(width: int, init: Init) -> float:
    """Standard deviation of learned tokens and positions at the start."""
    return width**-0.5 if init == "paper" else 0.7
