"""The pre-LN transformer block of the tokenizer (ViT: LayerNorm, biases, exact GELU)."""

from typing import Literal

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Init = Literal["paper", "local"]


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
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
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
