"""A head that draws a token's bits in a few rounds, each given the bits of earlier rounds (BAR)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step, stream
from alitok.ideas.shared.bits import bits_of
from alitok.models.generator import Generator, RMSNorm, SwiGLU
from alitok.models.seams import Guide, Head
from alitok.models.transformer import init_weights

MASK = 2  # the symbol of an unknown bit
VISIBLE = 0.1  # weight of a known bit's loss
SPREAD = 0.8  # standard deviation of the logit of the masked share
FREQUENCIES = 256


class BitEmbedding(nn.Module):
    """One vector for all bits of a token: a projection of their concatenated embeddings.

    Args:
        bits: k.
        symbols: number of symbols of a bit.
        width: width of the result.
    """

    def __init__(self, bits: int, symbols: int, width: int) -> None:
        super().__init__()
        part = -(-width // bits)
        self.table = nn.Embedding(symbols, part)
        self.project = nn.Linear(bits * part, width)

    def forward(self, symbols: Tensor) -> Tensor:
        """(..., k) int64 -> (..., width)."""
        return self.project(self.table(symbols).flatten(-2))


class HeadBlock(nn.Module):
    """x + g SwiGLU((1 + a) RMSNorm(x) + b), with a, b and g made from the condition. The bits are channels of x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.mlp = SwiGLU(width, multiple=1)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class MaskedBitHead(Head, nn.Module):
    """p(masked bits | known bits, hidden state), BAR's masked-bit head (arXiv 2602.09024, section 3).

    Args:
        inputs: width of the generator's hidden state.
        bits: k, bits of a token.
        rounds: number of bits that each round adds; they do not decrease and add up to k. Published: [2, 2, 5, 7] for
            k = 16, [2, 2, 2, 4] for k = 10.
        width, depth: size of the head's network.
        keep: which bits of a round stay: the most "confident", at a temperature that falls from T to T / rounds (BAR),
            or "random" ones, at T. With rounds of one bit, "random" is ordinary sampling of the bits.

    Raises:
        BadInput: rounds that do not fit, or an unknown `keep`.
    """

    has_logits = False
    draws_once = False
    frequencies: Tensor

    def __init__(
        self,
        inputs: int,
        bits: int,
        rounds: Sequence[int],
        width: int = 2048,
        depth: int = 3,
        keep: Literal["confident", "random"] = "confident",
    ) -> None:
        super().__init__()
        self.rounds = [int(count) for count in rounds]
        if not self.rounds or self.rounds[0] < 1 or self.rounds != sorted(self.rounds) or sum(self.rounds) != bits:
            raise BadInput(
                f"A token of {bits} bits takes rounds that do not decrease and add up to {bits}, not {self.rounds}: set"
                " head.rounds."
            )
        if keep not in ("confident", "random"):
            raise BadInput(f"The masked-bit head keeps confident or random bits, not {keep!r}: set head.keep.")
        self.bits, self.keep = bits, keep
        self.noise_shape = (len(self.rounds), bits, 2)  # one number for the bit, one for whether it stays
        self.register_buffer("frequencies", torch.randn(FREQUENCIES))
        self.share = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(inputs, width)
        self.embed = BitEmbedding(bits, MASK + 1, width)
        self.norm = RMSNorm(width)
        self.blocks = nn.ModuleList(HeadBlock(width) for _ in range(depth))
        self.last_norm = RMSNorm(width)
        self.modulation = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, 2 * bits)
        init_weights(self)
        layer: Any
        for layer in (*(block.modulation for block in self.blocks), self.modulation, self.proj):
            nn.init.zeros_(layer.weight)

    def forward(self, hidden: Tensor, symbols: Tensor, masked: Tensor) -> Tensor:
        """Logits of every bit.

        Args:
            hidden: (..., inputs).
            symbols: (..., k) int64, 0, 1 or `MASK`.
            masked: (...) float32, the share of masked bits.

        Returns:
            (..., k, 2) logits of 0 and 1.
        """
        angles = 2 * math.pi * masked[..., None] * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        condition = F.silu(self.share(waves) + self.condition(hidden))
        x = self.norm(self.embed(symbols))
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
        return self.proj(self.last_norm(x) * (1 + scale) + shift).unflatten(-1, (self.bits, 2))

    def loss(self, hidden: Tensor, ids: Tensor, step: Step | None = None) -> dict[str, Tensor]:
        """hidden (B, N, inputs), ids (B, N) -> "nats" (B, N), whose mean over N is an image's loss, in nats per bit.

        The loss is the mean over the image's bits, weighted 1 if masked and 0.1 if known. BAR divides by the weights of
        the whole batch; dividing by the image's weights makes images independent. Outside training all images have the
        same masks.
        """
        bits = self.unpack(ids)
        masked, share = self._masks(ids.shape[1], step, ids.device)
        logits = self(hidden, bits.masked_fill(masked, MASK), share).float()
        nats = F.cross_entropy(logits.flatten(0, -2), bits.flatten(), reduction="none").view(bits.shape)
        weights = torch.where(masked, 1.0, VISIBLE)
        return {"nats": (weights * nats).sum(-1) / weights.sum(-1).mean(1, keepdim=True)}

    def draw(self, hidden: Tensor, noise: Tensor, guide: Guide, temperature: float) -> Tensor:
        """See `Head.draw`. A round draws all masked bits, and masks those again that it does not keep."""
        images, known = len(noise), 0
        symbols = torch.full((images, self.bits), MASK, device=hidden.device)
        for number, count in enumerate(self.rounds):
            share = torch.full((len(hidden),), 1 - known / self.bits, device=hidden.device)
            logits = guide(self(hidden, symbols.repeat(len(hidden) // images, 1), share).float())
            value, stays = noise[:, number].unbind(-1)
            tau = temperature
            if self.keep == "confident":
                tau *= 1 - number / len(self.rounds)
            # the larger of two logits with Gumbel noise: a difference of two Gumbel numbers is logistic
            one = logits[..., 1] - logits[..., 0] + tau * value.logit() > 0
            if self.keep == "confident":
                stays = torch.where(one, logits[..., 1], logits[..., 0]) - tau * (-stays.log()).log()
            masked = symbols == MASK
            drawn = torch.where(masked, one.long(), symbols)
            known += count
            best = torch.where(masked, stays, torch.inf).topk(known).indices
            symbols = torch.full_like(symbols, MASK).scatter(1, best, drawn.gather(1, best))
        return (symbols << torch.arange(self.bits, device=symbols.device)).sum(-1)

    def unpack(self, ids: Tensor) -> Tensor:
        """ids (...) -> bits (..., k), the least significant first."""
        return bits_of(ids, self.bits)

    def _masks(self, tokens: int, step: Step | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """Masks of the bits (B, N, k), and the intended shares (B, N); B is 1 without a step."""
        name = "masked bits"
        streams = [stream(name)] if step is None else [step.stream(name, place) for place in step.places]
        noise = torch.stack([torch.randn(tokens, generator=each) for each in streams])
        keys = torch.stack([torch.rand(tokens, self.bits, generator=each) for each in streams])
        share = (1 - torch.sigmoid(SPREAD * noise)).clamp(1 / self.bits, 1)
        counts = (self.bits * share).round().clamp_min(1)
        ranks = send(keys, device).argsort(-1).argsort(-1)
        return ranks < send(counts, device)[..., None], send(share, device)


class MaskedBitGenerator(Generator):
    """A generator whose head is a `MaskedBitHead`; its body is `Generator`'s, not BAR's.

    Args:
        codebook_size: V = 2^k. A token is one id. Its bits should be those of binary codes or of LFQ: clustered codes
            whose ids share bits have nothing else in common.
        head: arguments of `MaskedBitHead` except the first two.
        embeddings: embeddings of input tokens: from their "bits" (BAR), or from a "table" with a row per code.
        arguments: the other arguments of `Generator`.

    Raises:
        BadInput: V is no power of two, or unknown embeddings.
    """

    def __init__(
        self,
        codebook_size: int,
        head: Mapping[str, Any],
        embeddings: Literal["bits", "table"] = "bits",
        **arguments: Any,
    ) -> None:
        bits = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 1 << bits:
            raise BadInput(f"Masked bits take a power of two of codes, not {codebook_size}: change codebook_size.")
        if embeddings not in ("bits", "table"):
            raise BadInput(f"MaskedBitGenerator embeds bits or a table, not {embeddings!r}: change embeddings.")
        table = embeddings == "table"
        super().__init__(codebook_size if table else 1, **arguments)
        self.codebook_size = codebook_size
        width = self.embeddings.embedding_dim
        self.embed = None if table else BitEmbedding(bits, MASK, width)
        if self.embed is not None:
            init_weights(self.embed)
        self.output = MaskedBitHead(width, bits, **head)

    def embed_labels(self, labels: Tensor) -> Tensor:
        # the rows of classes come last, after any number of rows of codes
        return self.embeddings(labels + self.embeddings.num_embeddings - self.num_classes - 1)[:, None]

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, width)."""
        return super().embed_tokens(ids) if self.embed is None else self.embed(self.output.unpack(ids))
