"""FID and Inception Score of samples against a reference, with the record that says what may be compared."""

import argparse
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("samples", metavar="SAMPLES", type=Path, help=".npz (arr_0) or a folder of PNG")
    parser.add_argument(
        "--reference", required=True, type=Path, metavar="REF", help=".npz (mu, sigma or arr_0) or a folder of PNG"
    )
    parser.add_argument(
        "--extractor",
        default="inception",
        metavar="FILE",
        help="inception-2015-12-05.pt (default: where clean-fid keeps it) or the folder of a classifier",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the record goes")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--device", default="auto")
    parser.epilog = "example: alitok evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json gfid.json"


def run(args: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from alitok.callbacks.metrics import open_extractor
    from alitok.commands.device import pick_device
    from alitok.common.errors import BadInput
    from alitok.common.files import sha256
    from alitok.evaluation.generation import GenerationMetrics
    from alitok.evaluation.image_sets import array_names, open_images
    from alitok.evaluation.record import EvaluationRecord, Named, reasons_against

    if args.batch < 1:
        raise BadInput(f"--batch must be at least 1, not {args.batch}.")
    images = open_images(args.samples)
    keys = array_names(args.reference) if args.reference.is_file() else set()
    extractor = open_extractor(args.extractor, pick_device(args.device))
    reference, reference_size = read_reference(args.reference, keys, extractor, args.batch)
    metrics = GenerationMetrics(extractor, reference)
    for part in track(images.batches(args.batch), "Samples", total=-(-images.count // args.batch)):
        metrics.update(part)
    results = metrics.compute()
    reasons = reasons_against(
        samples=images.count,
        labels=None,
        lossless=True,
        sample_size=images.size,
        reference_keys=keys,
        reference_size=reference_size,
        extractor=extractor,
    )
    record = EvaluationRecord(
        samples=images.count,
        reference=Named(args.reference.name, sha256(args.reference) if args.reference.is_file() else "folder"),
        extractor=Named(extractor.name, extractor.digest),
        resize=extractor.resize,
        quantisation="as stored",
        fid=results["fid"],
        inception_score=results["inception_score"],
        reasons=reasons,
    )
    if args.json:
        record.save(args.json)
    table = Table(title=f"{args.samples} against {args.reference}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row("FID", f"{record.fid:.4f}")
    table.add_row("Inception Score", f"{record.inception_score:.3f}")
    table.add_row("comparable", "yes" if record.comparable else "no: " + "; ".join(reasons))
    Console().print(table)


def read_reference(path: Path, keys: set[str], extractor: Any, batch: int) -> tuple[Any, int | None]:
    """Statistics of the reference, stored or measured, and the side of its images where it holds any."""
    from rich.progress import track

    from alitok.evaluation.image_sets import open_images
    from alitok.evaluation.statistics import FeatureStatistics

    stored = {"mu", "sigma"} <= keys
    size = open_images(path).size if not stored or "arr_0" in keys else None
    if stored:
        return FeatureStatistics.load(path), size
    images = open_images(path)
    statistics = FeatureStatistics(extractor.num_features)
    for part in track(images.batches(batch), "Reference", total=-(-images.count // batch)):
        statistics.update(extractor(part).pooled)
    return statistics, size
