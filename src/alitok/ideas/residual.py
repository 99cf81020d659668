"""Residual codes: a token is a sum of codes, each for the rest that the earlier ones leave (RQ-VAE, 2203.01941)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.quantizer import ClusteredQuantizer, ClusterStatistics
from alitok.models.seams import Quantized


class ResidualQuantizer(ClusteredQuantizer):
    """r_0 = z, k_d = nearest code to r_{d-1}, r_d = r_{d-1} - e(k_d); the token is e(k_1) + ... + e(k_S).

    One codebook serves all depths, as in RQ-VAE. The losses are means over the depths: "codebook"
    |e(k_d) - sg(r_{d-1})|^2 and "commitment" |z - sg(e(k_1) + ... + e(k_d))|^2. RQ-VAE moves its codes by averages,
    here the optimizer and the clustering do. Random anchors of code v are residuals of depth v mod S, so that small
    residuals get codes too.

    Args:
        codebook_size: V.
        code_dim: D.
        sub_codes: S, the depth; RQ-VAE has 4.
        commitment, clustering, decay, anchor: as for `ClusteredQuantizer`.

    Raises:
        BadInput: a depth below 2.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        sub_codes: int = 4,
        commitment: float = 0.25,
        clustering: bool = True,
        decay: float = 0.99,
        anchor: Literal["nearest", "random"] = "nearest",
    ) -> None:
        if sub_codes < 2:
            raise BadInput(f"ResidualQuantizer: sub_codes must be 2 or more, not {sub_codes}; 1 is ClusteredQuantizer.")
        super().__init__(codebook_size, code_dim, commitment, clustering, decay, anchor)
        self.sub_codes = sub_codes

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> sums of codes (B, N, D), ids (B, N, S)."""
        step = step or Step.alone(len(latents))
        ids, codebook, commitment = [], [], []
        joined: ClusterStatistics | None = None
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.codebook.weight.detach().float()
            rest = latents.detach()
            for depth in range(self.sub_codes):
                own, found = self._search(rest, codes, step)
                chosen = self.codebook(own)
                codebook.append(F.mse_loss(chosen, rest))
                rest = rest - chosen.detach()
                commitment.append(F.mse_loss(latents, latents.detach() - rest))
                ids.append(own)
                if found is not None:
                    if self.anchor == "random":
                        other = torch.arange(len(codes), device=rest.device) % self.sub_codes != depth
                        found.distance = found.distance.masked_fill(other, torch.inf)
                    joined = found if joined is None else joined.merge(found)
            indices = torch.stack(ids, dim=-1)
            losses = {
                "codebook": torch.stack(codebook).mean(),
                "commitment": self.commitment * torch.stack(commitment).mean(),
            }
            through = latents + (self.lookup(indices) - latents).detach()
        return Quantized(latents=latents, quantized=through, ids=indices, losses=losses, statistics=joined)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N, S) -> (B, N, D) float32."""
        return self.codebook(ids).float().sum(-2)
