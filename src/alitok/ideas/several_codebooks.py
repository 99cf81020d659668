"""Several codebooks per token, each with its own adapter, and a term that keeps them apart (FQGAN, UniTok)."""

from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.losses.terms import Batch, LossTerm, Outputs, required
from alitok.models.quantizer import ClusteredQuantizer, ClusterStatistics, check_codebook
from alitok.models.seams import Quantized
from alitok.models.transformer import Block, init_weights


class Adapter(nn.Module):
    """Maps latents for one codebook: transformer blocks, a norm and a linear layer (FQGAN has 6 blocks)."""

    def __init__(self, width: int, depth: int, heads: int, code_dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(width, code_dim)

    def forward(self, latents: Tensor) -> Tensor:
        for block in self.blocks:
            latents = block(latents)
        return self.proj(self.norm(latents))


class SeveralCodebooks(ClusteredQuantizer):
    """S clustered codebooks; a token is S ids, and the decoder gets their codes concatenated.

    Args:
        codebook_size: V, codes of each codebook.
        code_dim: d, channels of each codebook. The decoder's code_dim is S d.
        sub_codes: S.
        adapters: depth and heads of each codebook's `Adapter`, on latents of `latent_dim` channels (FQGAN). None cuts
            the latents, of S d channels, into S chunks (UniTok).
        latent_dim: channels of the latents, the encoder's code_dim; None for S d.
        commitment, clustering, decay, anchor: as for `ClusteredQuantizer`; losses are means over the codebooks.

    Raises:
        BadInput: fewer than 2 codebooks, or without adapters latents that do not have S d channels.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        sub_codes: int = 2,
        adapters: dict[str, Any] | None = None,
        latent_dim: int | None = None,
        commitment: float = 0.25,
        clustering: bool = True,
        decay: float = 0.99,
        anchor: Literal["nearest", "random"] = "nearest",
    ) -> None:
        check_codebook(sub_codes * codebook_size, "The quantizer", "take smaller or fewer codebooks")
        latent_dim = sub_codes * code_dim if latent_dim is None else latent_dim
        if sub_codes < 2 or (adapters is None and latent_dim != sub_codes * code_dim):
            raise BadInput(
                f"SeveralCodebooks takes 2 or more sub_codes, and without adapters latents of sub_codes x code_dim"
                f" channels, not {sub_codes} x {code_dim} of {latent_dim}."
            )
        if adapters is not None and adapters.keys() != {"depth", "heads"}:
            raise BadInput(f"adapters takes depth and heads, not {', '.join(adapters) or 'nothing'}.")
        super().__init__(sub_codes * codebook_size, code_dim, commitment, clustering, decay, anchor)
        self.codebook_size, self.sub_codes, self.latent_dim = codebook_size, sub_codes, latent_dim
        self.adapters = None
        if adapters is not None:
            self.adapters = nn.ModuleList(Adapter(latent_dim, code_dim=code_dim, **adapters) for _ in range(sub_codes))
            init_weights(self.adapters)

    def parts(self, latents: Tensor) -> list[Tensor]:
        """Latents (B, N, latent_dim) -> S times (B, N, d).

        Raises:
            BadInput: the latents have a wrong width.
        """
        if latents.shape[-1] != self.latent_dim:
            raise BadInput(
                f"The codebooks take latents of {self.latent_dim} channels, the encoder gives {latents.shape[-1]}: set"
                f" the encoder's code_dim to {self.latent_dim}."
            )
        if self.adapters is None:
            return list(latents.chunk(self.sub_codes, dim=-1))
        return [adapter(latents).float() for adapter in self.adapters]

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, latent_dim) -> codes (B, N, S d), ids (B, N, S); `extra["parts"]` has each codebook's codes."""
        step = step or Step.alone(len(latents))
        parts = self.parts(latents.float())
        codes = self.codebook.weight.detach().float().chunk(self.sub_codes)
        with torch.autocast(latents.device.type, enabled=False):
            found = [self._search(part.detach(), own, step) for part, own in zip(parts, codes, strict=True)]
            ids = torch.stack([own for own, _ in found], dim=-1)
            chosen = self._codes(ids)
            whole = torch.stack(parts, dim=-2)
            losses = {
                "codebook": F.mse_loss(chosen, whole.detach()),
                "commitment": self.commitment * F.mse_loss(whole, chosen.detach()),
            }
            through = whole + (chosen - whole).detach()
        kept = [own for _, own in found if own is not None]
        joined = None
        if kept:
            count, distance, feature = (
                torch.cat(parts)
                for parts in zip(*((own.count, own.distance, own.feature) for own in kept), strict=True)
            )
            joined = ClusterStatistics(count, distance, feature)
        return Quantized(
            latents=whole.flatten(-2),
            quantized=through.flatten(-2),
            ids=ids,
            losses=losses,
            statistics=joined,
            extra={"parts": through.unbind(-2)},
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N, S) -> (B, N, S d) float32."""
        return self._codes(ids).float().flatten(-2)

    def _codes(self, ids: Tensor) -> Tensor:
        """ids (B, N, S) -> (B, N, S, d)."""
        first_rows = torch.arange(self.sub_codes, device=ids.device) * self.codebook_size
        codes: Tensor = self.codebook(ids + first_rows)
        return codes

    @torch.no_grad()
    def update(self, statistics: ClusterStatistics) -> None:
        """As `ClusteredQuantizer.update`, with shares and rates per codebook."""
        counts = statistics.count.view(self.sub_codes, -1)
        share = (counts / counts.sum(1, keepdim=True)).flatten()
        self._move(share, self.codebook_size, statistics.feature)


class Disentangling(LossTerm):
    """Mean over places and pairs of codebooks of cos(q_i, q_j)^2 (FQGAN, weight 0.1).

    Random directions in d channels give 1 / d, so only lower values are evidence of disentangling.
    """

    weight = 0.1

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        sentence = (
            "Disentangling compares codebooks: take a quantizer that has several (experiments/ideas/fqgan.yaml), and"
            " leave the term out if tokens are given."
        )
        parts = required(outputs, "parts", sentence)
        pairs = list(combinations(parts, 2))
        return torch.stack([F.cosine_similarity(a.float(), b.float(), dim=-1).square().mean() for a, b in pairs]).mean()
