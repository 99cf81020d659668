"""The autoregressive generator: a plain decoder-only transformer over token ids."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.models.rope import generator_rope, rotate
from alitok.models.transformer import Dropout, attend, init_weights


class Cache(Protocol):
    """Where a step leaves its keys and values, and attends to them and those of the steps before."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value (B, heads, 1, head_dim) of the present position -> attention's output, same shape."""


class RMSNorm(nn.Module):
    """x / rms(x) computed in float32 and cast back, then times the weight."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class CausalAttention(nn.Module):
    """Causal attention with RMS-normalised queries and keys, rotated by position."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def _project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.qkv(x).chunk(3, dim=-1)  # first this, then the heads: a pass less over the gradient
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in parts)
        return rotate(self.q_norm(q), rope).to(v.dtype), rotate(self.k_norm(k), rope).to(v.dtype), v

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        q, k, v = self._project(x, rope)
        dropout = self.dropout if self.training else 0.0
        x = attend(q, k, v, causal=True, dropout=dropout)
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))

    def step(self, x: Tensor, rope: Tensor, cache: Cache, layer: int) -> Tensor:
        """One position (B, 1, width) against the cache."""
        x = cache.attend(layer, *self._project(x, rope))
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x), hidden width 8/3 of the width, rounded up to a multiple of `multiple`."""

    def __init__(self, width: int, multiple: int) -> None:
        super().__init__()
        hidden = -(-(8 * width // 3) // multiple) * multiple
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class GeneratorBlock(nn.Module):
    """RMSNorm -> attention, RMSNorm -> SwiGLU, both residual, dropout on both outputs."""

    def __init__(self, width: int, heads: int, dropout: float, hidden_multiple: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden_multiple)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), rope))
        return x + self.dropout(self.mlp(self.norm2(x)))

    def step(self, x: Tensor, rope: Tensor, cache: Cache, layer: int) -> Tensor:
        x = x + self.attention.step(self.norm1(x), rope, cache, layer)
        return x + self.mlp(self.norm2(x))


class Generator(nn.Module):
    """p(token i | class, tokens before i), LlamaGen-like, with QK-norm and 1D + 2D rotary positions.

    Args:
        codebook_size: V.
        num_classes: C; label C means "no class".
        num_prefix: K, tokens in front of the image tokens.
        grid: rows and columns of the image tokens.
        width, depth, heads: of the transformer.
        dropout: after the embedding, on attention weights, after the attention's projection and after the SwiGLU.
        hidden_multiple: the SwiGLU's hidden width is rounded up to a multiple of it.
    """

    rope: Tensor
    sub_codes: int | None = None  # S, where a token has several ids
    block: dict[str, Any]  # class block and card of the artifact that it was read from
    card: dict[str, Any]

    def __init__(
        self,
        codebook_size: int,
        num_classes: int,
        num_prefix: int,
        grid: tuple[int, int],
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.1,
        hidden_multiple: int = 256,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} does not divide into {heads} heads")
        rows, columns = grid
        self.codebook_size = codebook_size
        self.num_classes = num_classes
        self.num_tokens = num_prefix + rows * columns
        self.heads = heads
        self.head_dim = width // heads
        # Rows: [0, V) codes; V unused; V + 1 + c class c; V + 1 + C no class.
        self.embeddings = nn.Embedding(codebook_size + num_classes + 2, width)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(GeneratorBlock(width, heads, dropout, hidden_multiple) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.output = nn.Linear(width, codebook_size)
        self.register_buffer("rope", generator_rope(num_prefix, (rows, columns), self.head_dim), persistent=False)
        init_weights(self)
        nn.init.zeros_(self.output.weight)

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Shape of an image's ids: (N,), or (N, S)."""
        return (self.num_tokens,) if self.sub_codes is None else (self.num_tokens, self.sub_codes)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """labels (B,) in [0, C] -> (B, 1, width)."""
        return self.embeddings(labels + self.codebook_size + 1)[:, None]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, width)."""
        return self.embeddings(ids)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Teacher forcing.

        Args:
            ids: (B, N) int64.
            labels: (B,) int64 in [0, C]; C is "no class".

        Returns:
            (B, N, V) logits; [:, i] predicts ids[:, i] and sees the label and ids[:, :i].
        """
        x = torch.cat([self.embed_labels(labels), self.embed_tokens(ids[:, :-1])], dim=1)
        x = self.dropout(x)
        rope = self.rope[: x.shape[1]]
        for block in self.blocks:
            x = block(x, rope)
        return self.output(self.norm(x))

    def step(self, x: Tensor, position: Tensor, cache: Cache) -> Tensor:
        """Logits (B, V) for the token at `position`, given the embedding (B, 1, width) of the one before it.

        Position 0 takes the class token, position i > 0 token i - 1; the cache holds the positions before. `position`
        is a tensor (1,) on the model's device, so that a captured step serves every position.
        """
        rope = self.rope[position]
        block: Any
        for layer, block in enumerate(self.blocks):
            x = block.step(x, rope, cache, layer)
        return self.output(self.norm(x[:, -1]))
