"""Vector quantization whose codebook is kept in use by online clustering (CVQ-VAE)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import float32_products, send
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.models.seams import Quantized, Quantizer
from alitok.models.transformer import init_weights

# Distances are computed for blocks of tokens so that no (tokens, V) matrix larger than this many numbers exists.
BLOCK_ELEMENTS = 1 << 22
MOST_CODES = 1 << 24  # float32 counts no further, and the count of each code's use takes 128 MB


def check_codebook(codes: int, what: str, remedy: str) -> None:
    """Raises BadInput if `what` has no codes, or more than `MOST_CODES`."""
    if not 1 <= codes <= MOST_CODES:
        raise BadInput(f"{what} has {codes:,} codes, but a codebook has 1 to {MOST_CODES:,}; {remedy}.")


def relative_distances(features: Tensor, codes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(block of features (m, D), squared L2 distances to all codes minus the features' squared norms (m, V)).

    Blocks bound the memory. The caller adds the norms only if it needs more than the order of the codes.
    """
    norms = codes.square().sum(1)
    for block in features.split(max(1, BLOCK_ELEMENTS // len(codes))):
        with float32_products(tf32=False):  # TF32's ten bits would often find a different code
            distances = torch.addmm(norms, block, codes.T, alpha=-2)
        yield block, distances
        del distances  # else two blocks of distances are in memory


@dataclass
class ClusterStatistics:
    """Statistics of a set of features for the clustering update. Sets merge in order, in any grouping.

    Attributes:
        count: (V,) how many features chose each code.
        distance: (V,) squared distance of the feature nearest to each code. With random anchors it is 0 if the feature
            drawn for the code is in this set, else infinite.
        feature: (V, D), the nearest or drawn feature.
    """

    count: Tensor
    distance: Tensor
    feature: Tensor

    def merge(self, other: Self) -> Self:
        """The statistics of both sets together. If distances are equal, the feature of `self` stays."""
        closer = other.distance < self.distance
        return type(self)(
            count=self.count + other.count,
            distance=torch.where(closer, other.distance, self.distance),
            feature=torch.where(closer[:, None], other.feature, self.feature),
        )


class ClusteredQuantizer(Quantizer):
    """Nearest code by squared L2 distance, with the online clustering of CVQ-VAE (Zheng & Vedaldi 2023).

    `forward` changes no state: in training mode it returns statistics, and `update` applies those of the whole global
    batch once, merged over micro-batches and processes. Anchors are therefore the same however the global batch is
    split.

    Args:
        codebook_size: V.
        code_dim: D.
        commitment: weight of the commitment loss.
        clustering: return statistics in training mode, so that unused codes move to features.
        decay: decay of the running share of tokens that chose each code.
        anchor: the feature that an unused code moves to: the "nearest" to it (AliTok), or a "random" one, which
            depends on seed, step and code. "random" is for batches so small that many codes have the same nearest
            feature and would move to the same place.

    Raises:
        BadInput: there are no codes, or more than 2^24.
    """

    usage: Tensor

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        commitment: float = 0.25,
        clustering: bool = True,
        decay: float = 0.99,
        anchor: Literal["nearest", "random"] = "nearest",
    ) -> None:
        super().__init__()
        check_codebook(codebook_size, "The quantizer", "change codebook_size")
        self.codebook_size = codebook_size
        self.commitment = commitment
        self.clustering = clustering
        self.decay = decay
        self.anchor = anchor
        self.codebook = nn.Embedding(codebook_size, code_dim)
        self.register_buffer("usage", torch.zeros(codebook_size))
        init_weights(self)

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> quantized latents, ids (B, N), losses "codebook" and "commitment" (means over all elements)."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            codes = self.codebook.weight.detach().float()
            ids, statistics = self._search(latents.detach(), codes, step or Step.alone(len(latents)))
            quantized = self.codebook(ids)
            losses = {
                "codebook": F.mse_loss(quantized, latents.detach()),
                "commitment": self.commitment * F.mse_loss(latents, quantized.detach()),
            }
            straight_through = latents + (quantized - latents).detach()
        return Quantized(latents=latents, quantized=straight_through, ids=ids, losses=losses, statistics=statistics)

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N) -> latents (B, N, D) float32."""
        return self.codebook(ids).float()

    @torch.no_grad()
    def _search(self, latents: Tensor, codes: Tensor, step: Step) -> tuple[Tensor, ClusterStatistics | None]:
        """ids (B, N) of the nearest of the codes (V, D), and the statistics for the update."""
        features = latents.flatten(0, -2)
        collect = self.training and self.clustering
        anchors = self._random_anchors(latents, len(codes), step) if collect and self.anchor == "random" else ()
        ids, statistics = [], None
        for block, distances in relative_distances(features, codes):
            distances.add_(block.square().sum(1, keepdim=True))
            chosen = distances.argmin(1)
            ids.append(chosen)
            if collect:
                if self.anchor == "nearest":
                    nearest, which = distances.min(0)
                    anchors = (nearest, block[which])
                # not bincount, which makes the host wait for the device
                count = chosen.new_zeros(len(codes)).scatter_add_(0, chosen, torch.ones_like(chosen))
                part = ClusterStatistics(count, *anchors)
                statistics = part if statistics is None else statistics.merge(part)
            del distances  # before the next block's distances are made
        return torch.cat(ids).view(latents.shape[:-1]), statistics

    def _random_anchors(self, latents: Tensor, codes: int, step: Step) -> tuple[Tensor, Tensor]:
        """(distances (V,), features (V, D)): for each code the feature at a random place of the global batch.

        The part of the batch with that place returns its feature at distance 0. Other parts return an infinite
        distance, so merging drops theirs.
        """
        features, tokens = latents.flatten(0, -2), latents.shape[:-1].numel() // len(latents)
        places = torch.randint(step.size * tokens, (codes,), generator=step.stream("anchor"))
        own = send(places, features.device) - step.places.start * tokens
        here = (own >= 0) & (own < len(features))
        return torch.where(here, 0.0, torch.inf), features[own.clamp(0, len(features) - 1)]

    @torch.no_grad()
    def update(self, statistics: ClusterStatistics) -> None:
        """Applies the clustering update of one global batch (CVQ-VAE, equations 5 and 6).

        p <- decay p + (1 - decay) share; a = exp(-10 V p / (1 - decay) - 1e-3); code <- (1 - a) code + a feature.
        """
        self._move(statistics.count / statistics.count.sum(), self.codebook_size, statistics.feature)

    def _move(self, share: Tensor, codes: int, feature: Tensor) -> None:
        self.usage.mul_(self.decay).add_(share, alpha=1 - self.decay)
        rate = torch.exp(-10 * codes * self.usage / (1 - self.decay) - 1e-3)[:, None]
        weight = self.codebook.weight
        weight.copy_((1 - rate) * weight + rate * feature)
