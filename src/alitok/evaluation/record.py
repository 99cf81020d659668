"""The evaluation record: numbers, and everything that decides whether they may be compared."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from alitok.common.files import write_json
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.reference import ADM_KEYS, SAMPLES, TRAINING, VALIDATION

PUBLISHED_SAMPLES, PUBLISHED_CLASSES = 50_000, 1000
ADM = "adm"


@dataclass(frozen=True)
class Named:
    """Name and digest of a file, network or set."""

    name: str
    digest: str


@dataclass(frozen=True)
class ImagesRecord(Named):
    """A set of images: name, digest, and if known their number and their side in pixels."""

    count: int | None
    image_size: int | None


@dataclass(frozen=True)
class EvaluationRecord:
    """What `alitok evaluate --json` writes; an unknown or missing value is None (null).

    `measure` is "gFID" (samples against training images) or "rFID" (reconstructions against validation images).
    """

    measure: str
    samples: ImagesRecord
    reference: Named | None
    extractor: Named
    protocol: str
    resize: str
    quantisation: str | None
    fid: float | None = None
    fid_mean: float | None = None
    fid_covariance: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    chd: float | None = None
    codes: Named | None = None  # the tokenizer of CHD
    rfid: float | None = None
    rfid_mean: float | None = None
    rfid_covariance: float | None = None
    pfid: float | None = None
    pfid_by_setting: dict[str, float] | None = None
    psnr: float | None = None
    ssim: float | None = None
    codebook_usage: float | None = None
    codebook_perplexity: float | None = None
    generator: dict[str, str] | None = None
    tokenizer: dict[str, str] | None = None
    guidance: float | None = None
    power: float | None = None
    schedule: str | None = None
    temperature: float | None = None
    seed: int | None = None
    keep: int | None = None  # tokens kept of each sample
    alitok: str | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def comparable(self) -> bool:
        """Whether the numbers may be compared with published ones: `reasons` is empty."""
        return not self.reasons

    def to_dict(self) -> dict[str, object]:
        """All keys of the contract, ready for JSON."""
        return {**asdict(self), "comparable": self.comparable}

    def save(self, path: str | Path) -> None:
        """Write the record as JSON, whole or not at all."""
        write_json(path, self.to_dict())


def reasons_against(
    *,
    samples: int,
    labels: Tensor | None,
    lossless: bool,
    sample_size: int,
    reference_keys: frozenset[str] | set[str],
    reference_size: int | None,
    reference_made_of: str = TRAINING,
    extractor: Extractor,
    protocol: str = ADM,
    unknown: tuple[str, ...] = (),
) -> list[str]:
    """Why numbers of samples are not comparable with published ones, one sentence each; empty if they are.

    Args:
        labels: (samples,) class of each image in order, None if unknown.
        lossless: the samples were never stored with loss (e.g. as JPEG), nor resampled.
        sample_size, reference_size: height and width of the images, None if unknown.
        reference_keys: the arrays in the reference file.
        reference_made_of: one of the kinds in `evaluation.reference`.
        unknown: unknown properties of the samples.
    """
    reasons = []
    if samples != PUBLISHED_SAMPLES:
        reasons.append(f"{samples:,} samples instead of {PUBLISHED_SAMPLES:,}")
    if labels is None:
        reasons.append("the classes of the samples are not known, so their counts and order cannot be checked")
    else:
        known = labels.cpu().clamp(0, PUBLISHED_CLASSES)  # any larger number, e.g. an id, is one class too many
        counts = torch.bincount(known, minlength=PUBLISHED_CLASSES)
        if len(counts) != PUBLISHED_CLASSES or counts.min() != counts.max():
            reasons.append(f"the samples do not hold {PUBLISHED_CLASSES:,} classes in equal counts")
        if not torch.equal(labels.cpu(), torch.arange(len(labels)) % len(counts)):
            reasons.append("the samples do not cycle through the classes (0, 1, ..., 999, 0, ...)")
    if unknown:
        reasons.append(f"nothing tells the {', '.join(unknown)} of the samples")
    if not lossless:
        reasons.append("the samples are not stored losslessly at their own size (JPEG, or cropped on reading)")
    missing = [key for key in ADM_KEYS if key not in reference_keys]
    if missing:
        reasons.append(f"the reference is not ADM's: it holds no {', '.join(missing)}")
    if reference_made_of in (VALIDATION, SAMPLES):
        reasons.append(f"the reference is made of {reference_made_of}, not of training images")
    if reference_size is None:
        reasons.append("the resolution of the reference is not known")
    elif reference_size != sample_size:
        reasons.append(f"the reference has {reference_size} pixels, the samples {sample_size}")
    return [*reasons, *_network_reasons(extractor, protocol)]


def reasons_against_reconstruction(
    *, images: int, own_images: bool, made_of_known: bool, held_out: bool, extractor: Extractor, protocol: str = ADM
) -> list[str]:
    """Why an rFID is not comparable with published ones, one sentence each; empty if it is.

    Args:
        own_images: the reconstructions are measured against their own originals.
        made_of_known: the reference records that it is made of validation images; matters only without `own_images`.
        held_out: the images are a share of the training split, because there is no validation split.
    """
    reasons = []
    if images != PUBLISHED_SAMPLES:
        reasons.append(f"{images:,} images instead of the {PUBLISHED_SAMPLES:,} of the validation split")
    if held_out:
        reasons.append("the images are held out of the training split, the data has no validation split")
    if not own_images and not made_of_known:
        reasons.append("nothing tells what the reference is made of")
    return [*reasons, *_network_reasons(extractor, protocol)]


def _network_reasons(extractor: Extractor, protocol: str) -> list[str]:
    reasons = []
    if protocol != ADM:
        reasons.append(f"the protocol is clean-fid's {protocol}, not that of the ADM evaluator")
    if extractor.stand_in:
        reasons.append(f"the extractor {extractor.name} is not the 2015 Inception")
    return reasons
