"""gFID and related metrics: samples against a reference of training images, by the ADM protocol."""

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from alitok.common.digest import tokenizer_digest
from alitok.common.distributed import all_or_none, rank
from alitok.common.errors import BadInput
from alitok.common.progress import bar
from alitok.evaluation.code_distance import check_size, code_histograms
from alitok.evaluation.image_sets import ImageSet, open_images
from alitok.evaluation.measure import Measured, distances, measure
from alitok.evaluation.precision_recall import NEIGHBORS
from alitok.evaluation.protocol import is_spec, open_spec, pick_extractor
from alitok.evaluation.record import ADM, PUBLISHED_SAMPLES, EvaluationRecord, ImagesRecord, Named, reasons_against
from alitok.evaluation.reference import (
    SAMPLES,
    UNKNOWN,
    Reference,
    file_reference,
    only_statistics,
    refuse_for_samples,
    save_statistics,
    set_reference,
)
from alitok.evaluation.sidecar import KEYS, TOLD, read_sidecar, sidecar_labels, sidecar_path
from alitok.models.tokenizer import Tokenizer

NOT_TOLD = ("generator", "tokenizer", "guidance", "temperature", "seed", "quantisation")


@dataclass(frozen=True)
class Samples:
    """What is measured, and against what.

    Attributes:
        samples, reference: .npz, a folder of PNG, or a data spec.
        extractor: a file, or "inception".
        protocol: adm, or a mode of clean-fid.
        split, reference_split, size, count: for data specs only.
        save_statistics: path for mean and covariance of the samples.
        json: path of the record, which the caller writes.
        chd: name of the tokenizer for CHD, in the record.
        batch: images measured together.
    """

    samples: str
    reference: str | None = None
    extractor: str = "inception"
    protocol: str = ADM
    split: str | None = None
    reference_split: str | None = None
    size: int | None = None
    count: int | None = None
    save_statistics: Path | None = None
    json: Path | None = None
    chd: str | None = None
    batch: int = 32


def evaluate_samples(args: Samples, device: torch.device, codes: Tokenizer | None = None) -> EvaluationRecord:
    """gFID and the rest of the ADM protocol. A collective.

    Args:
        codes: tokenizer for CHD.

    Raises:
        BadInput: anything that cannot be read or does not fit.
    """
    check_outputs(args)
    if not is_spec(args.samples) and only_statistics(Path(args.samples)):
        if codes is not None:
            raise BadInput(f"{args.samples} holds statistics, not images, which have no codes: leave --chd out.")
        return compare_statistics(args, device)
    samples: ImageSet | None = None if is_spec(args.samples) else open_images(Path(args.samples))
    known: dict[str, Any] = dict.fromkeys(KEYS)
    if samples is not None:
        known = read_sidecar(Path(args.samples), samples.count, samples.size)
    extractor = pick_extractor(args.protocol, args.extractor, device)
    reference: Reference | None = None
    if args.reference is not None and not is_spec(args.reference):
        reference = file_reference(Path(args.reference), extractor)
        refuse_for_samples(reference)
    size = args.size or (samples.size if samples else None) or (reference.size if reference else None)
    made_of = UNKNOWN if known["count"] is None else SAMPLES
    if samples is None:
        samples, made_of = open_spec(args.samples, args.split or "val", size, args.count)
    if args.reference is not None and reference is None:
        reference = set_reference(*open_spec(args.reference, args.reference_split or "train", size))

    if codes is not None:
        if reference is None or reference.images is None:
            name = args.reference if reference is None else reference.name
            raise BadInput(f"{name} holds statistics, not images, which have no codes: leave --chd out.")
        for images in (samples, reference.images):
            check_size(images, codes)
    if reference is not None and samples.count < 2:
        raise BadInput(f"{samples.name} has {samples.count} image: a FID takes at least two.")
    # precision and recall belong to the ADM protocol, and need the reference's images and enough neighbors
    others = None if reference is None else reference.images
    wanted = args.protocol == ADM and others is not None and min(samples.count, others.count) > NEIGHBORS
    measured = measure(samples, extractor, args.batch, keep=wanted, progress=bar("Samples"))
    record = ImagesRecord(samples.name, measured.digest, samples.count, samples.size)
    results: dict[str, Any] = {"inception_score": measured.score}
    if args.save_statistics is not None:
        about = {
            "made_of": made_of,
            "images": samples.name,
            "digest": measured.digest,
            "image_size": samples.size,
            "extractor": {"name": extractor.name, "digest": extractor.digest},
            "resize": extractor.resize,
            "alitok": version("alitok"),
        }
        with all_or_none():
            if rank() == 0:
                save_statistics(args.save_statistics, measured, about)
    if reference is not None:
        reference = reference.measured(extractor, args.batch, wanted, bar("Reference"))
        assert reference.pooled is not None
        results |= distances(measured, reference.pooled, reference.spatial, reference.features, device)
        if codes is not None and reference.images is not None:
            sets = (samples, reference.images)
            own, theirs = (code_histograms(images, codes, args.batch, bar("Codes")) for images in sets)
            results["chd"] = own.distance(theirs)
            results["codes"] = Named(args.chd or "", tokenizer_digest(codes))
    labels = sidecar_labels(known, samples.count)
    reasons = reasons_against(
        samples=samples.count,
        labels=samples.labels if labels is None else labels,
        lossless=measured.lossless,
        sample_size=samples.size,
        reference_keys=reference.keys if reference else frozenset(),
        reference_size=reference.size if reference else None,
        reference_made_of=reference.made_of if reference else UNKNOWN,
        extractor=extractor,
        protocol=args.protocol,
        unknown=tuple(key for key in NOT_TOLD if known[key] is None),
    )
    return EvaluationRecord(
        measure="gFID",
        samples=record,
        reference=Named(reference.name, reference.digest) if reference else None,
        extractor=Named(extractor.name, extractor.digest),
        protocol=args.protocol,
        resize=extractor.resize,
        **{key: known[key] for key in TOLD},
        **results,
        reasons=reasons,
    )


def compare_statistics(args: Samples, device: torch.device) -> EvaluationRecord:
    """FID and sFID of samples given only as stored statistics.

    Raises:
        BadInput: as `evaluate_samples`, or a reference without stored statistics.
    """
    if args.reference is None or is_spec(args.reference) or args.save_statistics is not None:
        raise BadInput(f"{args.samples} holds statistics, not images: give a --reference file to compare them with.")
    extractor = pick_extractor(args.protocol, args.extractor, device)
    samples, reference = (file_reference(Path(path), extractor) for path in (args.samples, args.reference))
    refuse_for_samples(reference)
    reference = reference.measured(extractor, args.batch, features=False, progress=bar("Reference"))
    assert samples.pooled is not None
    assert reference.pooled is not None
    measured = Measured(samples.pooled, samples.spatial, None, None, samples.digest, lossless=False)
    results: dict[str, Any] = distances(measured, reference.pooled, reference.spatial, None)
    reasons = ["of the samples only stored statistics are given, so nothing about them can be checked"]
    if samples.pooled.count not in (None, PUBLISHED_SAMPLES):
        reasons.append(f"{samples.pooled.count:,} samples instead of {PUBLISHED_SAMPLES:,}")
    return EvaluationRecord(
        measure="gFID",
        samples=ImagesRecord(samples.name, samples.digest, samples.pooled.count, samples.size),
        reference=Named(reference.name, reference.digest),
        extractor=Named(extractor.name, extractor.digest),
        protocol=args.protocol,
        resize=extractor.resize,
        quantisation=None,
        **results,
        reasons=reasons,
    )


def check_outputs(args: Samples) -> None:
    """Refuse outputs that would overwrite inputs, and options without effect."""
    inputs = [Path(path) for path in (args.samples, args.reference) if path is not None]
    read = {path.resolve() for path in (*inputs, sidecar_path(inputs[0]))}
    for option, path in (("--json", args.json), ("--save-statistics", args.save_statistics)):
        if path is not None and path.resolve() in read:
            raise BadInput(f"{option} {path} would replace a file that is read: name another.")
    specs = [path is not None and is_spec(path) for path in (args.samples, args.reference)]
    if args.size is not None and not any(specs):
        raise BadInput("--size is the crop of a data spec, and none is given: leave it out.")
    for option, name, spec in (
        ("split", "SAMPLES", specs[0]),
        ("count", "SAMPLES", specs[0]),
        ("reference_split", "REF", specs[1]),
    ):
        if getattr(args, option) is not None and not spec:
            raise BadInput(f"--{option.replace('_', '-')} applies only if {name} is a data spec: leave it out.")
