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
    """Stores the keys and values of each step, and attends to all stored so far."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value (B, heads, L, head_dim) of the present positions -> attention's output, same shape."""


class RMSNorm(nn.Module):
    """x / rms(x), computed in float32 and cast back, times the weight."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).type_as(x) * self.weight


class CausalAttention(nn.Module):
    """Causal attention with RMS-normalized queries and keys, rotated by position."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads)
        self.k_norm = RMSNorm(width // heads)
        self.proj = nn.Linear(width, width)

    def _project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.qkv(x).chunk(3, dim=-1)  # before the split into heads: one pass less over the gradient
        q, k, v = (rearrange(part, "b t (h d) -> b h t d", h=self.heads) for part in parts)
        return rotate(self.q_norm(q), rope).to(v.dtype), rotate(self.k_norm(k), rope).to(v.dtype), v

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        q, k, v = self._project(x, rope)
        dropout = self.dropout if self.training else 0.0
        x = attend(q, k, v, causal=True, dropout=dropout)
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))

    def step(self, x: Tensor, rope: Tensor, cache: Cache, layer: int) -> Tensor:
        """Attention of the present positions (B, L, width) to the cache."""
        x = cache.attend(layer, *self._project(x, rope))
        return self.proj(rearrange(x, "b h t d -> b t (h d)"))


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x). The hidden width is 8/3 of the width, rounded up to a multiple of `multiple`."""

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
    """The usual head: one linear layer, and a softmax over the codes. S > 1 sub-codes have S independent softmaxes.

    Args:
        width: width of the hidden state.
        codebook_size: V, possible values of an id.
        sub_codes: S, ids per token.
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
        num_prefix: K, prefix tokens before the image tokens.
        grid: rows and columns of the image tokens.
        width, depth, heads: size of the transformer.
        dropout: after the embedding, on attention weights, after the attention's projection and after the SwiGLU.
        hidden_multiple: the SwiGLU's hidden width is rounded up to a multiple of it.

    Attributes:
        output: the head, a module that is a `Head`.
        sub_codes: S, ids per token.
        ordered: it can write the tokens in other orders (see `Order`).
        causal: a hidden state depends only on the label and the earlier tokens.
        cached: `step` with a cache gives the same hidden states as `hidden`.
        sampler: class path of the default sampler if the generator is not causal; it then has `token_logits`.
    """

    rope: Tensor
    sub_codes: int = 1
    ordered = False
    causal = True
    cached = True
    sampler: str | None = None
    entries = ("losses",)
    block: dict[str, Any]  # block and card are those of the artifact that it was read from
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
        # Rows: 0..V-1 codes; V unused; V + 1 + c class c; V + 1 + C no class.
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
        """Adds embeddings that depend on the place of the next token. This default adds nothing.

        `step` does not call it: a subclass that overrides this overrides `step` too.

        Args:
            x: (B, N, width), embeddings: [:, i] is that of the token before the i-th written one, [:, 0] the label's.
            order: (B, N), the places in the order of writing; None for 0..N-1.
        """
        return x

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        """Teacher forcing, for heads that have logits.

        Args:
            ids: (B, N) int64, or (B, N, S).
            labels: (B,) int64 in [0, C]; C is "no class".

        Returns:
            (B, N, V) logits, or (B, N, S, V); [:, i] predicts ids[:, i] from the label and ids[:, :i].

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
        """The outputs that training and its loss terms read, by name.

        Args:
            ids: (B, N) or (B, N, S), the targets.
            labels: (B,) in [0, C].
            inputs: ids that the generator reads instead of the targets, of the same shape.
            order: (B, N), see `Ordering.places`. Outputs by token are then in this order.
            step: step of training; None elsewhere.

        Returns:
            "nats" (B, N), the head's loss per token; "hidden" (B, N, width), the head's inputs; "targets", "inputs",
            "labels"; and "logits" if the head has any.
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
        """Hidden states (B, N, width), the head's inputs; [:, i] depends on the label and ids[:, :i].

        Args:
            ids: in the order of writing.
            order: (B, N), the places in that order; None for 0..N-1.
            condition: (B, N, width) or (B, 1, width), added to the embeddings, as a `Branch`'s condition in sampling.
        """
        x = torch.cat([self.embed_labels(labels), self.embed_tokens(ids[:, :-1])], dim=1)
        x = x if condition is None else x + condition
        x = self.dropout(self.place(x, order))
        rope = self.rope[: x.shape[1]]
        if order is not None:
            # The label is at position 0, the token of place p at p + 1. Each image has its own angles, for all heads.
            rope = self.rope[F.pad(order[:, :-1] + 1, (1, 0))][:, None]
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x)

    def step(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, L, width) at `positions`; the cache has the positions before.

        Args:
            x: (B, L, width), embeddings: the label's at position 0, that of token i - 1 at position i > 0.
            positions: (L,) int64, the same for all rows, or (B, L). A tensor on the model's device, so that one
                captured step works for every position.
        """
        rope = self.rope[positions]
        rope = rope[:, None] if positions.ndim == 2 else rope  # the same angles for all heads
        block: Any
        for layer, block in enumerate(self.blocks):
            x = block.step(x, rope, cache, layer)
        return self.norm(x)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """Gathers values (B, N, ...) at the places (B, L) -> (B, L, ...)."""
    return values.gather(1, place_index(values, order))


def place_index(values: Tensor, places: Tensor) -> Tensor:
    """Places (B, L) as an index (B, L, ...) into values (B, N, ...), for `gather` and `scatter`."""
    return places.view(*places.shape, *[1] * (values.ndim - 2)).expand(*places.shape, *values.shape[2:])
