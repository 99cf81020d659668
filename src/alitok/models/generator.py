"""The autoregressive generator: a plain decoder-only transformer over token ids."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Head, Part
from alitok.models.transformer import Dropout, attend, generator_rope, init_weights, rotate


class Cache(Protocol):
    """Where a step leaves its keys and values, and attends to them and those of the steps before."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value (B, heads, L, head_dim) of the present positions -> attention's output, same shape."""


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
        """The present positions (B, L, width) against the cache."""
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


class Categorical(Head, nn.Linear):
    """The usual head: one linear layer, softmax over the codes. With S > 1 sub-codes, S softmaxes side by side.

    Args:
        width: of the hidden state.
        codebook_size: V, of a sub-code.
        sub_codes: S.
    """

    def __init__(self, width: int, codebook_size: int, sub_codes: int = 1) -> None:
        super().__init__(width, sub_codes * codebook_size)
        self.sub_codes = sub_codes
        self.noise_shape = (sub_codes,) if sub_codes > 1 else ()

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> logits (..., V), or (..., S, V)."""
        logits = super().forward(hidden)
        return logits if self.sub_codes == 1 else logits.unflatten(-1, (self.sub_codes, -1))


class Generator(Part):
    """p(token i | class, tokens before i), LlamaGen-like, with QK-norm and 1D + 2D rotary positions.

    Args:
        codebook_size: V.
        num_classes: C; label C means "no class".
        num_prefix: K, tokens in front of the image tokens.
        grid: rows and columns of the image tokens.
        width, depth, heads: of the transformer.
        dropout: after the embedding, on attention weights, after the attention's projection and after the SwiGLU.
        hidden_multiple: the SwiGLU's hidden width is rounded up to a multiple of it.

    Attributes:
        output: the head, a module that is a `Head`.
        sub_codes: S, ids of a token.
        ordered: it can write the tokens in another order (see `Order`).
        causal: a hidden state sees the label and the tokens before, no other.
        cached: `step` with a cache gives the hidden states of `hidden`.
        sampler: class path of the sampler of a generator that is not causal; it then has `token_logits`.
    """

    rope: Tensor
    sub_codes: int = 1
    ordered = False
    causal = True
    cached = True
    sampler: str | None = None
    entries = ("losses",)
    block: dict[str, Any]  # class block and card of the artifact that it was read from
    card: Mapping[str, Any] = {}

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
        self.num_prefix = num_prefix
        self.num_tokens = num_prefix + rows * columns
        self.columns = columns
        self.heads = heads
        self.head_dim = width // heads
        # Rows: [0, V) codes; V unused; V + 1 + c class c; V + 1 + C no class.
        self.embeddings = nn.Embedding(codebook_size + num_classes + 2, width)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList(GeneratorBlock(width, heads, dropout, hidden_multiple) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.output: Any = Categorical(width, codebook_size)
        self.register_buffer("rope", generator_rope(num_prefix, (rows, columns), self.head_dim), persistent=False)
        init_weights(self)
        nn.init.zeros_(self.output.weight)

    @property
    def id_shape(self) -> tuple[int, ...]:
        """Shape of an image's ids: (N,), or (N, S)."""
        return (self.num_tokens,) if self.sub_codes == 1 else (self.num_tokens, self.sub_codes)

    def embed_labels(self, labels: Tensor) -> Tensor:
        """labels (B,) in [0, C] -> (B, 1, width)."""
        return self.embeddings(labels + self.codebook_size + 1)[:, None]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, width)."""
        return self.embeddings(ids)

    def place(self, x: Tensor, order: Tensor | None) -> Tensor:
        """Adds what depends on the places that are written next.

        Args:
            x: (B, N, width), the label and the tokens before each of the N.
            order: (B, N) the places in the order in which they are written; None for 0..N-1.
        """
        return x

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Teacher forcing, for heads that have logits.

        Args:
            ids: (B, N) int64, or (B, N, S).
            labels: (B,) int64 in [0, C]; C is "no class".

        Returns:
            (B, N, V) logits, or (B, N, S, V); [:, i] predicts ids[:, i] and sees the label and ids[:, :i].

        Raises:
            BadInput: the head has no logits.
        """
        if not self.output.has_logits:
            raise BadInput(f"{type(self.output).__name__} draws tokens in rounds and has no logits: use `losses`.")
        logits: Tensor = self.output(self.hidden(ids, labels))
        return logits

    def losses(
        self,
        ids: Tensor,
        labels: Tensor,
        inputs: Tensor | None = None,
        order: Tensor | None = None,
        step: Step | None = None,
    ) -> dict[str, Tensor]:
        """What training and its loss terms depend on, by name.

        Args:
            ids: (B, N) or (B, N, S), the targets.
            labels: (B,) in [0, C].
            inputs: what the generator reads in place of the targets, of the same shape.
            order: (B, N), see `Ordering.places`. Outputs by token are then in this order.
            step: of training; None elsewhere.

        Returns:
            "nats" (B, N) the head's loss of each token, "hidden" (B, N, width) at the head, "targets", "inputs",
            "labels", and "logits" if the head has any.
        """
        inputs = ids if inputs is None else inputs
        if order is not None:
            ids, inputs = (in_order(part, order) for part in (ids, inputs))
        hidden = self.hidden(inputs, labels, order)
        outputs = {"hidden": hidden, "targets": ids, "inputs": inputs, "labels": labels}
        return outputs | self.output.loss(hidden, ids, step)

    def hidden(
        self, ids: Tensor, labels: Tensor, order: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Hidden states (B, N, width) at the head; [:, i] sees the label and ids[:, :i].

        Args:
            ids: in the order in which they are written.
            order: (B, N) the places in that order; None for 0..N-1.
            condition: (B, N, width) or (B, 1, width), added to what the transformer reads, as a `Branch`'s in sampling.
        """
        x = torch.cat([self.embed_labels(labels), self.embed_tokens(ids[:, :-1])], dim=1)
        x = x if condition is None else x + condition
        x = self.dropout(self.place(x, order))
        rope = self.rope[: x.shape[1]]
        if order is not None:
            # The label is at position 0, the token of place p at p + 1; a row of angles for each image and one for all
            # heads.
            rope = self.rope[F.pad(order[:, :-1] + 1, (1, 0))][:, None]
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x)

    def step(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, L, width) at `positions`, given the embeddings (B, L, width) of the tokens before them.

        Position 0 takes the class token, position i > 0 token i - 1; the cache holds the positions before.

        Args:
            positions: (L,) int64, the same for all rows, or (B, L); a tensor on the model's device, so that a captured
                step serves every position.
        """
        rope = self.rope[positions]
        rope = rope[:, None] if positions.ndim == 2 else rope  # one row of angles for all heads
        block: Any
        for layer, block in enumerate(self.blocks):
            x = block.step(x, rope, cache, layer)
        return self.norm(x)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """values (B, N, ...) at the places (B, L) -> (B, L, ...)."""
    return values.gather(1, place_index(values, order))


def place_index(values: Tensor, places: Tensor) -> Tensor:
    """Places (B, L) as an index (B, L, ...) into values (B, N, ...), for `gather` and `scatter`."""
    return places.view(*places.shape, *[1] * (values.ndim - 2)).expand(*places.shape, *values.shape[2:])
