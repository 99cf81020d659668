"""References against which samples or reconstructions are measured, and checks of which reference suits which."""

import json
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.files import atomic_file, sha256
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.fid import FeatureStatistics
from alitok.evaluation.image_sets import ARRAY, ImageSet, array_names, open_images
from alitok.evaluation.measure import Measured, Progress, measure

ADM_KEYS = ("mu", "sigma", "mu_s", "sigma_s", ARRAY)
ABOUT = "about"
TRAINING, VALIDATION, SAMPLES, UNKNOWN = "training images", "validation images", "samples", "unknown"


@dataclass(frozen=True)
class Reference:
    """A reference: stored or measured statistics, and features (R, F) of its images if it has any.

    Args:
        keys: arrays in its file, empty if it is not a file.
        size: side of its images in pixels, None if unknown.
        made_of: one of the kinds above.
        images: its images, None if it has only statistics.
    """

    name: str
    digest: str
    keys: frozenset[str]
    size: int | None
    made_of: str
    images: ImageSet | None = None
    pooled: FeatureStatistics | None = None
    spatial: FeatureStatistics | None = None
    features: Tensor | None = None

    def measured(self, extractor: Extractor, batch: int, features: bool, progress: Progress = iter) -> "Reference":
        """A copy with the statistics, measured if they are not stored, and the features if requested. A collective.

        Raises:
            BadInput: an image that cannot be used.
        """
        if self.images is None or (self.pooled is not None and not features):
            return self
        found = measure(self.images, extractor, batch, statistics=self.pooled is None, keep=features, progress=progress)
        with_features = replace(self, features=found.features)
        if self.pooled is not None:
            return with_features
        return replace(with_features, pooled=found.pooled, spatial=found.spatial, digest=found.digest)


def only_statistics(path: Path) -> bool:
    """Whether a path is an .npz file with stored statistics and without images."""
    keys = array_names(path) if path.is_file() else set()
    return ARRAY not in keys and keys >= {"mu", "sigma"}


def file_reference(path: Path, extractor: Extractor) -> Reference:
    """The reference in an .npz file (stored statistics, images or both) or a folder of PNG.

    Raises:
        BadInput: it cannot be read, or its statistics come from another extractor.
    """
    keys = array_names(path) if path.is_file() else set()
    stored = bool(keys & {"mu", "sigma"})
    images = open_images(path) if ARRAY in keys or not stored else None
    about = read_about(path) if ABOUT in keys else {}
    made_of = about.get("made_of", TRAINING if keys >= set(ADM_KEYS) else UNKNOWN)
    size = about.get("image_size") if images is None else images.size
    reference = Reference(path.name, "", frozenset(keys), size, made_of, images)
    if not stored:
        return reference
    pooled = FeatureStatistics.load(path)
    spatial = FeatureStatistics.load(path, "mu_s", "sigma_s") if keys >= {"mu_s", "sigma_s"} else None
    for statistics, width, words in (
        (pooled, extractor.num_features, "mu and sigma are"),
        (spatial, extractor.num_spatial, "mu_s and sigma_s are"),
    ):
        if statistics is not None and width and statistics.num_features != width:
            raise BadInput(
                f"{path}: {words} of {statistics.num_features} features, but {extractor.name} gives {width}: "
                "use the extractor that the statistics were made with."
            )
    theirs = about.get("extractor", {}).get("digest"), about.get("resize")
    if about and theirs != (extractor.digest, extractor.resize):
        raise BadInput(
            f"{path} was measured with the extractor {about.get('extractor', {}).get('name')} (resize:"
            f" {about.get('resize')}), not with {extractor.name} (resize: {extractor.resize}): use one for both."
        )
    return replace(reference, digest=sha256(path), pooled=pooled, spatial=spatial)


def set_reference(images: ImageSet, made_of: str) -> Reference:
    """A set of images as a reference; `Reference.measured` measures it."""
    return Reference(images.name, "", frozenset(), images.size, made_of, images)


def refuse_for_samples(reference: Reference) -> None:
    """Refuse stored statistics that are meant for rFID.

    Raises:
        BadInput: statistics of validation images.
    """
    if reference.made_of == VALIDATION and reference.images is None:
        raise BadInput(
            f"{reference.name} holds statistics of validation images, which are meant for rFID; the FID of samples is"
            " measured against training images: give ADM's reference, or statistics saved with --split train."
        )


def refuse_for_reconstructions(reference: Reference, size: int) -> None:
    """Refuse a reference that does not suit rFID.

    Raises:
        BadInput: a reference of training images or samples, or of images of another size.
    """
    if reference.made_of in (TRAINING, SAMPLES):
        raise BadInput(
            f"{reference.name} is made of {reference.made_of}, which is meant for the FID of samples; rFID is measured"
            " against the validation images themselves: leave --reference out, or give their statistics."
        )
    if reference.size not in (None, size):
        raise BadInput(
            f"{reference.name} is of images of {reference.size} pixels, the reconstructions have {size}:"
            " leave --reference out, or give the statistics of validation images of that size."
        )


def save_statistics(path: Path, measured: Measured, about: dict[str, Any]) -> None:
    """Write mu, sigma, count (and mu_s, sigma_s) with their origin, whole or not at all.

    Args:
        about: origin: `made_of`, `image_size`, `extractor` {name, digest}, `resize`, and more if known.
    """
    arrays: dict[str, Any] = measured.pooled.to_dict()
    if measured.spatial is not None:
        spatial = measured.spatial.to_dict()
        arrays |= {"mu_s": spatial["mu"], "sigma_s": spatial["sigma"]}
    arrays[ABOUT] = np.asarray(json.dumps(about))
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_about(path: Path) -> dict[str, Any]:
    """The origin that `save_statistics` stored with statistics.

    Raises:
        BadInput: the entry is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file[ABOUT]))
        if not isinstance(about, dict) or not isinstance(about.get("extractor"), dict):
            raise ValueError(about)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path}: the entry {ABOUT!r} is damaged; save the statistics again.") from error
    return about
