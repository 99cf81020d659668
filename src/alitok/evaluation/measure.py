"""One pass over a set of images for FID, sFID, Inception Score, precision and recall."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from alitok.common.distributed import all_or_none, all_sum
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance, frechet_parts
from alitok.evaluation.image_sets import Batch, ImageSet, Reader
from alitok.evaluation.inception_score import InceptionScore

KEPT = 50_000  # at most this many images keep their features for precision and recall (400 MB at a width of 2,048)

Progress = Callable[[Reader], Iterable[Batch]]


@dataclass(frozen=True)
class Measured:
    """The measurements of a set, equal on every process.

    `spatial` and `score` are None if the extractor has no spatial features or no classes. `features` are (M, F) float32
    in the order of the set, with M at most `KEPT`.
    """

    pooled: FeatureStatistics
    spatial: FeatureStatistics | None
    score: float | None
    features: Tensor | None
    digest: str
    lossless: bool


def measure(
    images: ImageSet,
    extractor: Extractor,
    batch: int = 32,
    *,
    statistics: bool = True,
    keep: bool = True,
    progress: Progress = iter,
) -> Measured:
    """Read a set once, each process its share. A collective.

    Args:
        statistics: whether mean and covariance are needed (they may be stored already).
        keep: whether the features are needed; if there are more than `KEPT` images, `KEPT` evenly spaced ones.
        progress: wraps the reader, e.g. in a progress bar.

    Raises:
        BadInput: an image that cannot be used, on every process.
    """
    reader = Reader(images, batch)
    pooled = FeatureStatistics(extractor.num_features)
    spatial = FeatureStatistics(extractor.num_spatial) if extractor.num_spatial else None
    score = InceptionScore()
    kept = min(images.count, KEPT)
    features = torch.zeros(kept if keep else 0, extractor.num_features)
    scored = False
    with all_or_none():
        for index, pixels in progress(reader):
            found = extractor(pixels)
            if statistics:
                pooled.update(found.pooled)
                if spatial is not None and found.spatial is not None:
                    spatial.update(found.spatial)
                if found.probabilities.shape[1]:
                    score.update(found.probabilities, index)
                    scored = True
            if keep:
                place = index * kept // images.count
                first = place != (index - 1) * kept // images.count
                features[place[first]] = found.pooled.cpu()[first]
    has_score = bool(all_sum(torch.tensor(float(scored))))
    return Measured(
        pooled=pooled.reduce() if statistics else pooled,
        spatial=spatial.reduce() if statistics and spatial is not None else None,
        score=score.compute()["inception_score"] if has_score else None,
        features=all_sum(features) if keep else None,
        digest=reader.digest(),
        lossless=reader.lossless(),
    )


def distances(
    samples: Measured,
    pooled: FeatureStatistics,
    spatial: FeatureStatistics | None,
    features: Tensor | None,
    device: torch.device | str = "cpu",
) -> dict[str, float | None]:
    """`fid` with its parts, `sfid`, `precision` and `recall` of samples against a reference, and `inception_score`.

    A value is None if one side lacks what it needs. A collective.

    Args:
        features: features (R, F) of the reference.
        device: where neighbors are searched.

    Raises:
        BadInput: different widths, too few images, or features that are not finite.
    """
    from alitok.evaluation.precision_recall import precision_recall

    result: dict[str, float | None] = dict.fromkeys(("fid", "sfid", "inception_score", "precision", "recall"))
    result |= frechet_parts(samples.pooled, pooled)
    result["inception_score"] = samples.score
    if samples.spatial is not None and spatial is not None:
        result["sfid"] = frechet_distance(samples.spatial, spatial)
    if samples.features is not None and features is not None:
        result |= precision_recall(samples.features.to(device), features.to(device))
    return result
