"""One index into two tables: a token's code has a semantic half and a pixel half (TokenFlow, arXiv 2412.03069)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.latent_alignment import LatentAlignment
from alitok.ideas.shared.teachers import Teacher
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.seams import Quantized


class SharedIndexQuantizer(ClusteredQuantizer):
    """Chooses the index i with the least |s - S_i|^2 + w |p - P_i|^2, each half on its unit sphere.

    The decoder gets both halves. The two tables are one codebook of vectors [S_i, sqrt(w) P_i], so the clustering moves
    both halves of an unused code to one feature. TokenFlow has one encoder per half, one of them pretrained; here one
    encoder makes both.

    Args:
        codebook_size: V.
        semantic_dim: channels of s, the first ones of a latent.
        pixel_dim: channels of p.
        pixel_weight: w.
        commitment, clustering, decay, anchor: as for `ClusteredQuantizer`.

    Raises:
        BadInput: a half without channels, or a weight that is not positive.
    """

    def __init__(
        self,
        codebook_size: int,
        semantic_dim: int,
        pixel_dim: int,
        pixel_weight: float = 1.0,
        commitment: float = 0.25,
        clustering: bool = True,
        decay: float = 0.99,
        anchor: Literal["nearest", "random"] = "nearest",
    ) -> None:
        if min(semantic_dim, pixel_dim) < 1 or pixel_weight <= 0:
            raise BadInput(
                f"SharedIndexQuantizer takes two halves of 1 or more channels and a pixel_weight above 0, not"
                f" {semantic_dim}, {pixel_dim} and {pixel_weight}."
            )
        super().__init__(codebook_size, semantic_dim + pixel_dim, commitment, clustering, decay, anchor)
        self.halves = [semantic_dim, pixel_dim]
        self.pixel_scale = pixel_weight**0.5
        # a buffer, so that the tokenizer's digest reflects how ids are made
        self.register_buffer("form", torch.tensor([float(semantic_dim), float(pixel_dim), pixel_weight]))

    def weighted(self, vectors: Tensor) -> Tensor:
        """(..., Ds + Dp) -> [s / |s|, sqrt(w) p / |p|]."""
        semantic, pixel = vectors.float().split(self.halves, dim=-1)
        return torch.cat([F.normalize(semantic, dim=-1), self.pixel_scale * F.normalize(pixel, dim=-1)], dim=-1)

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, Ds + Dp) -> codes [S_i, P_i], ids (B, N); `extra["semantic"]` is S_i with the gradient of s.

        Raises:
            BadInput: the latents have a wrong width.
        """
        if latents.shape[-1] != sum(self.halves):
            raise BadInput(
                f"The two tables take latents of {sum(self.halves)} channels, the encoder gives {latents.shape[-1]}:"
                f" set the encoder's code_dim to {sum(self.halves)}."
            )
        with torch.autocast(latents.device.type, enabled=False):
            latents = self.weighted(latents)
            codes = self.weighted(self.codebook.weight)
            ids, statistics = self._search(latents.detach(), codes.detach(), step or Step.alone(len(latents)))
            chosen = F.embedding(ids, codes)
            losses = {
                "codebook": F.mse_loss(chosen, latents.detach()),
                "commitment": self.commitment * F.mse_loss(latents, chosen.detach()),
            }
            through = self._unweighted(latents + (chosen - latents).detach())
        semantic = through[..., : self.halves[0]]
        return Quantized(
            latents=self._unweighted(latents),
            quantized=through,
            ids=ids,
            losses=losses,
            statistics=statistics,
            extra={"semantic": semantic},
        )

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> (B, N, Ds + Dp) float32."""
        return self._unweighted(self.weighted(self.codebook(ids)))

    def _unweighted(self, vectors: Tensor) -> Tensor:
        semantic, pixel = vectors.split(self.halves, dim=-1)
        return torch.cat([semantic, pixel / self.pixel_scale], dim=-1)


class SemanticHalf(LatentAlignment):
    """Mean over images and patches of 1 - cos(MLP(S_i), f), f the teacher's feature (TokenFlow, weight 1).

    The MLP is Linear, SiLU, Linear with `hidden` channels inside; TokenFlow has a transformer instead.

    Args:
        channels: channels of the semantic half.
        weight: weight of the term in phases that set none.
    """

    output = "semantic"

    def __init__(self, teacher: Teacher, channels: int, prefix: int, hidden: int = 512, weight: float = 1.0) -> None:
        super().__init__(teacher, channels, prefix)
        self.hidden, self.weight = hidden, weight

    def make_head(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.channels, self.hidden), nn.SiLU(), nn.Linear(self.hidden, self.teacher.channels)
        )

    def distance(self, projected: Tensor, features: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(projected, features, dim=-1).mean()
