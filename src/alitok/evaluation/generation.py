"""FID and Inception Score of generated images."""

import torch
from torch import Tensor

from alitok.evaluation.extractors import Extractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.evaluation.inception_score import InceptionScore


class GenerationMetrics:
    """FID (if there are reference statistics) and Inception Score, from one pass over the images."""

    def __init__(
        self, extractor: Extractor, reference: FeatureStatistics | None = None, split_size: int = 5000
    ) -> None:
        self.extractor = extractor
        self.reference = reference
        self.statistics = FeatureStatistics(extractor.num_features)
        self._score = InceptionScore(split_size)

    def reset(self) -> None:
        self.statistics.reset()
        self._score.reset()

    @torch.no_grad()
    def update(self, images: Tensor, index: Tensor | None = None) -> None:
        """Add uint8 images (B, 3, H, W) and their positions in the sample (B,), which several processes need.

        Raises:
            BadInput: the extractor refuses the images.
        """
        features = self.extractor(images)
        self._score.update(features.probabilities, index)
        self.statistics.update(features.pooled)

    def compute(self) -> dict[str, float]:
        """`inception_score` and, with a reference, `fid`, equal on every process.

        Raises:
            BadInput: no images (for FID: fewer than two), or a reference with another feature width.
        """
        result = self._score.compute()
        if self.reference is not None:
            result["fid"] = frechet_distance(self.statistics.reduce(), self.reference)
        return result
