"""pFID: how far pictures of perturbed codes are from the images, as a sampler's errors would perturb them."""

from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from alitok.evaluation.extractors import Extractor
from alitok.evaluation.statistics import FeatureStatistics, frechet_distance

ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
DELTAS = {16384: (200, 280, 360), 8192: (100, 140, 180), 4096: (50, 70, 90), 1024: (10, 15, 20)}
SHARES = (0.0122, 0.0171, 0.022)  # of the codebook, as the first three rows have it, for other sizes


class Setting(NamedTuple):
    """Every token becomes, with probability alpha, one of the delta codes nearest to its latent."""

    alpha: float
    delta: int


def deltas_of(codebook_size: int) -> tuple[int, ...]:
    """The deltas of a codebook size: the three published ones, else the same shares of the codebook, each once."""
    if codebook_size in DELTAS:
        return DELTAS[codebook_size]
    return tuple(dict.fromkeys(min(codebook_size, max(2, round(share * codebook_size))) for share in SHARES))


class PerturbedFID:
    """FID of decoded perturbed codes, averaged over 15 settings (Robust Latent Matters, arXiv 2503.08354, pFID).

    Comparable only between tokenizers of one codebook size, and at equal counts.

    Args:
        extractor: of the features.
        codebook_size: V, which decides the deltas.

    Attributes:
        settings: the pairs of alpha and delta. published: whether the deltas are the paper's.
    """

    def __init__(self, extractor: Extractor, codebook_size: int) -> None:
        self.extractor = extractor
        self.deltas = deltas_of(codebook_size)
        self.published = codebook_size in DELTAS
        self.settings = [Setting(*pair) for pair in product(ALPHAS, self.deltas)]
        self.reset()

    def reset(self) -> None:
        self.statistics = [FeatureStatistics(self.extractor.num_features) for _ in self.settings]

    @torch.no_grad()
    def update(self, setting: Setting, images: Tensor) -> None:
        """Adds uint8 images (B, 3, H, W) that were decoded from codes perturbed with one of the settings."""
        self.statistics[self.settings.index(setting)].update(self.extractor(images).pooled)

    def compute(self, real: FeatureStatistics) -> dict[str, float | dict[str, float]]:
        """`pfid` and `pfid_by_setting` (by "alpha 0.5, delta 50", ...) against the images, equal on every process.

        Raises:
            BadInput: fewer than two images.
        """
        found = {
            f"alpha {setting.alpha:g}, delta {setting.delta}": frechet_distance(statistics.reduce(), real)
            for setting, statistics in zip(self.settings, self.statistics, strict=True)
        }
        return {"pfid": sum(found.values()) / len(found), "pfid_by_setting": found}
