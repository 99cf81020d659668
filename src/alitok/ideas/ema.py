"""A codebook of moving averages: a code is the mean of its recent latents (VQ-VAE, arXiv 1711.00937)."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.sums import sums_by_code
from alitok.models.quantizer import ClusteredQuantizer, ClusterStatistics
from alitok.models.seams import Quantized


class Codes(nn.Module):
    """A table of vectors that are not parameters: ids (...) -> (..., D)."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


@dataclass
class AverageStatistics(ClusterStatistics):
    """`ClusterStatistics` with the sum of the features that chose each code.

    Attributes:
        total: (V, D), the sum.
    """

    total: Tensor

    def merge(self, other: Self) -> Self:
        """Statistics of both sets together."""
        both = ClusterStatistics(self.count, self.distance, self.feature).merge(other)
        return type(self)(both.count, both.distance, both.feature, self.total + other.total)


class AverageQuantizer(ClusteredQuantizer):
    """Nearest code by squared L2 distance; the codes are moving averages (VQ-VAE, appendix A.1), not parameters.

    For each code, which n of a global batch's T tokens choose, with m the sum of their latents:
    share <- decay share + (1 - decay) n / T, total <- decay total + (1 - decay) m / T, code = total / share. The state
    is in buffers, so it is in every checkpoint and artifact. A code whose share falls below `dead` / V moves to the
    latent at a random place of the global batch, with the share 1 / V (as in Jukebox, arXiv 2005.00341).

    Args:
        codebook_size: V.
        code_dim: D.
        commitment: weight of the commitment loss, the only loss.
        decay: decay of the averages.
        dead: share of tokens, times V, below which a code is moved. An unused code falls from the average share to 0.2
            of it in 160 steps at a decay of 0.99.

    Raises:
        BadInput: no codes, more than 2^24, or a decay or `dead` that is not between 0 and 1.
    """

    share: Tensor
    total: Tensor

    def __init__(
        self, codebook_size: int, code_dim: int, commitment: float = 0.25, decay: float = 0.99, dead: float = 0.2
    ) -> None:
        for name, value in (("decay", decay), ("dead", dead)):
            if not 0 < value < 1:
                raise BadInput(f"AverageQuantizer: {name} must be above 0 and below 1, not {value}.")
        super().__init__(codebook_size, code_dim, commitment, decay=decay, anchor="random")
        del self.usage
        self.dead = dead
        codes = self.codebook.weight.detach()
        self.codebook = Codes(codes)  # type: ignore[assignment]
        self.register_buffer("share", torch.full((codebook_size,), 1 / codebook_size))
        self.register_buffer("total", codes / codebook_size)

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> quantized latents, ids (B, N), loss "commitment" (mean over all elements)."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.codebook.weight.float()
            ids, found = self._search(latents.detach(), codes, step or Step.alone(len(latents)))
            chosen = F.embedding(ids, codes)
            losses = {"commitment": self.commitment * F.mse_loss(latents, chosen)}
            through = latents + (chosen - latents).detach()
        statistics = None
        if found is not None:
            total = sums_by_code(latents.detach().flatten(0, -2), ids.flatten(), self.codebook_size)
            statistics = AverageStatistics(found.count, found.distance, found.feature, total)
        return Quantized(latents=latents, quantized=through, ids=ids, losses=losses, statistics=statistics)

    @torch.no_grad()
    def update(self, statistics: ClusterStatistics) -> None:
        """Update the averages with one global batch, then move the codes that are rarely chosen."""
        assert isinstance(statistics, AverageStatistics)
        tokens = statistics.count.sum()
        self.share.mul_(self.decay).add_(statistics.count / tokens, alpha=1 - self.decay)
        self.total.mul_(self.decay).add_(statistics.total / tokens, alpha=1 - self.decay)
        dead = self.share < self.dead / self.codebook_size
        self.share.copy_(torch.where(dead, 1 / self.codebook_size, self.share))
        self.total.copy_(torch.where(dead[:, None], statistics.feature / self.codebook_size, self.total))
        self.codebook.weight.copy_(self.total / self.share[:, None])
