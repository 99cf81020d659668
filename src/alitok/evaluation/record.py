"""The evaluation record: a number together with everything that decides whether it may be compared."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from alitok.common.files import atomic_file
from alitok.evaluation.extractors import Extractor

PUBLISHED_SAMPLES, PUBLISHED_CLASSES = 50_000, 1000
ADM_KEYS = ("mu", "sigma", "mu_s", "sigma_s", "arr_0")


@dataclass(frozen=True)
class Named:
    """A thing by name and digest."""

    name: str
    digest: str


@dataclass(frozen=True)
class EvaluationRecord:
    """What `alitok evaluate --json` writes; numbers that a stand-in cannot give are None (null)."""

    samples: int
    reference: Named
    extractor: Named
    resize: str
    quantisation: str
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None
    reasons: list[str] = field(default_factory=list)

    @property
    def comparable(self) -> bool:
        """Whether the numbers may stand beside published ones: no reason speaks against it."""
        return not self.reasons

    def to_dict(self) -> dict[str, object]:
        """All keys of the contract, ready for JSON."""
        return {**asdict(self), "comparable": self.comparable}

    def save(self, path: str | Path) -> None:
        """Writes the record as JSON, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False)
        with atomic_file(path) as temporary:
            temporary.write_text(text + "\n")


def reasons_against(
    *,
    samples: int,
    labels: Tensor | None,
    lossless: bool,
    sample_size: int,
    reference_keys: set[str],
    reference_size: int | None,
    extractor: Extractor,
) -> list[str]:
    """Why numbers are not comparable with published ones, one sentence each; empty where they are.

    Args:
        labels: (samples,) class of each image in order, None where it is not known.
        lossless: the samples were never stored as JPEG or the like.
        sample_size, reference_size: height and width of the images, None where it is not known.
        reference_keys: the arrays that the reference file holds.
    """
    reasons = []
    if samples != PUBLISHED_SAMPLES:
        reasons.append(f"{samples:,} samples instead of {PUBLISHED_SAMPLES:,}")
    if labels is None:
        reasons.append("the classes of the samples are not known, so their counts and order cannot be checked")
    else:
        counts = torch.bincount(labels.cpu(), minlength=PUBLISHED_CLASSES)
        if len(counts) != PUBLISHED_CLASSES or counts.min() != counts.max():
            reasons.append(f"the samples do not hold {PUBLISHED_CLASSES:,} classes in equal counts")
        if not torch.equal(labels.cpu(), torch.arange(len(labels)) % len(counts)):
            reasons.append("the samples do not cycle through the classes (0, 1, ..., 999, 0, ...)")
    if not lossless:
        reasons.append("the samples are not stored losslessly")
    missing = [key for key in ADM_KEYS if key not in reference_keys]
    if missing:
        reasons.append(f"the reference is not ADM's: it holds no {', '.join(missing)}")
    if reference_size is None:
        reasons.append("the resolution of the reference is not known")
    elif reference_size != sample_size:
        reasons.append(f"the reference has {reference_size} pixels, the samples {sample_size}")
    if extractor.stand_in:
        reasons.append(f"the extractor {extractor.name} is not the 2015 Inception")
    return reasons
