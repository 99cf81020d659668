"""Measure FID, sFID, Inception Score, precision and recall of samples, or rFID, PSNR and SSIM of a tokenizer.

Without --reconstruction, SAMPLES are compared with REF, e.g. ADM's reference of training images (gFID).
With it, the validation images of --data are reconstructed by --tokenizer and compared with themselves (rFID).
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from alitok.commands.options import add_device_argument
from alitok.common.errors import BadInput

if TYPE_CHECKING:
    from alitok.evaluation.record import EvaluationRecord

T = TypeVar("T")
PROTOCOLS = ("adm", "clean", "legacy_tensorflow", "legacy_pytorch")
ROWS = {
    "fid": "FID (gFID)",
    "fid_mean": "  by the means",
    "fid_covariance": "  by the covariances",
    "sfid": "sFID",
    "inception_score": "Inception Score",
    "precision": "precision",
    "recall": "recall",
    "chd": "distance of the codes (CHD)",
    "rfid": "FID (rFID)",
    "rfid_mean": "  by the means",
    "rfid_covariance": "  by the covariances",
    "pfid": "FID of perturbed codes (pFID)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "codebook_usage": "codebook in use",
    "codebook_perplexity": "codebook perplexity",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("samples", metavar="SAMPLES", nargs="?", help=".npz (arr_0), a folder of PNG, or a data spec")
    parser.add_argument("--reference", metavar="REF", help=".npz (mu, sigma or arr_0), a folder of PNG, or a data spec")
    parser.add_argument(
        "--extractor",
        default="inception",
        metavar="FILE",
        help="inception-2015-12-05.pt (default: where clean-fid keeps it) or the folder of a classifier",
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default="adm", help="ADM's evaluator (default), or a mode of clean-fid"
    )
    parser.add_argument("--split", choices=("train", "val"), help="split of SAMPLES if it is a data spec (default val)")
    parser.add_argument(
        "--reference-split", choices=("train", "val"), help="split of REF if it is a data spec (default train)"
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="center crop of a data spec (default: the size of the other set)"
    )
    parser.add_argument(
        "--count", type=int, metavar="N", help="take N images at most of a data spec (SAMPLES or --data)"
    )
    parser.add_argument(
        "--save-statistics", type=Path, metavar="FILE", help="keep mu and sigma of SAMPLES, as a later --reference"
    )
    parser.add_argument(
        "--chd", metavar="DIR", help="also CHD: the distance of SAMPLES and REF in the codes of this tokenizer artifact"
    )
    parser.add_argument("--reconstruction", action="store_true", help="rFID, PSNR and SSIM of --tokenizer on --data")
    parser.add_argument("--pfid", action="store_true", help="with --reconstruction: also pFID, on perturbed codes")
    parser.add_argument("--tokenizer", metavar="DIR", help="tokenizer artifact")
    parser.add_argument("--data", metavar="SPEC", help="data spec whose validation split is reconstructed")
    parser.add_argument(
        "--quantization",
        "--quantisation",
        choices=("truncated", "rounded"),
        help="how reconstructions become bytes (default truncated)",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="with --reconstruction: write a PNG of eight images and their reconstructions",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the record goes")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images measured together (default 32)")
    add_device_argument(parser)
    parser.epilog = (
        "example: alitok evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --json gfid.json\n"
        "         alitok evaluate --reconstruction --tokenizer runs/imagenet256/stage2/artifact --data data/imagenet\n"
        "         torchrun --nproc-per-node 8 -m alitok evaluate ...   shares the work"
    )


def run(args: argparse.Namespace) -> None:
    import torch

    from alitok.artifacts.folder import load_tokenizer
    from alitok.common.devices import pick_device
    from alitok.common.distributed import process_group, rank
    from alitok.evaluation.gfid import Samples, evaluate_samples
    from alitok.evaluation.rfid import Reconstructions, evaluate_reconstructions
    from alitok.ideas.perturbation import PerturbedFID

    check_options(args)
    with process_group(pick_device(args.device)) as device:
        if device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # its ten bits would change the third digit
        if args.reconstruction:
            tokenizer, extra = load_tokenizer(args.tokenizer, device), PerturbedFID if args.pfid else None
            record = evaluate_reconstructions(taken(Reconstructions, args), tokenizer, device, extra)
        else:
            codes = None if args.chd is None else load_tokenizer(args.chd, device)
            record = evaluate_samples(taken(Samples, args), device, codes)
        if rank() == 0:
            print_table(record, args)
            if args.json:
                record.save(args.json)


def taken(kind: type[T], args: argparse.Namespace) -> T:
    """The library's settings from the options of the same names."""
    return kind(**{field.name: getattr(args, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that do not fit together and outputs that cannot be written, before anything is measured."""
    from alitok.common.files import check_writable

    for name in ("batch", "size", "count"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"--{name} must be at least 1, not {value}.")
    for path in (args.json, args.save_statistics, args.picture):
        if path is not None:
            check_writable(path)
    if args.reconstruction:
        for given, words in (
            (args.samples, "SAMPLES"),
            (args.save_statistics, "--save-statistics"),
            (args.size, "--size"),
            (args.split, "--split"),
            (args.chd, "--chd"),
        ):
            if given is not None:
                raise BadInput(f"--reconstruction makes its own images from --tokenizer and --data: leave {words} out.")
        if args.tokenizer is None or args.data is None:
            raise BadInput("--reconstruction needs --tokenizer DIR and --data SPEC.")
        if args.reference_split == "train":
            raise BadInput("rFID is measured against validation images, not --reference-split train: leave it out.")
        return
    if args.chd is not None and args.reference is None:
        raise BadInput("--chd compares SAMPLES with REF: give --reference REF.")
    if args.pfid:
        raise BadInput("--pfid perturbs the codes of a tokenizer: it belongs to --reconstruction.")
    if args.picture is not None:
        raise BadInput("--picture shows reconstructions: it belongs to --reconstruction.")
    if args.tokenizer is not None or args.data is not None:
        raise BadInput("--tokenizer and --data belong to --reconstruction; samples are given as SAMPLES.")
    if args.quantization is not None:
        raise BadInput(
            "--quantization is for reconstructions; how samples were made is read from the JSON next to them."
        )
    if args.samples is None:
        raise BadInput("Give SAMPLES (.npz, a folder of PNG or a data spec), or --reconstruction.")
    if args.reference is None and args.save_statistics is None:
        raise BadInput("Give --reference REF to measure against, or --save-statistics FILE to keep for later.")


def print_table(record: "EvaluationRecord", args: argparse.Namespace) -> None:
    """Print the record as a table."""
    from rich.console import Console
    from rich.table import Table

    subject = f"{args.tokenizer} on {args.data}" if args.reconstruction else args.samples
    against = args.reference or ("the same images" if args.reconstruction else "nothing")
    table = Table(title=f"{record.measure}: {subject} against {against}")
    table.add_column("measure")
    table.add_column("value")
    for name, title in ROWS.items():
        if (value := getattr(record, name)) is not None:
            table.add_row(title, f"{value:.4f}", style="bold")
    things = {"samples": record.samples, "reference": record.reference, "extractor": record.extractor}
    for title, thing in (things | {"codes of CHD": record.codes}).items():
        if thing is not None:
            table.add_row(title, f"{thing.name} ({thing.digest[:12]})")
    for title, number in (("images", record.samples.count), ("size", record.samples.image_size)):
        if number is not None:
            table.add_row(title, f"{number:,}")
    for title in ("generator", "tokenizer"):
        if (made_by := getattr(record, title)) is not None:
            table.add_row(title, f"{made_by['name']} ({made_by['digest'][:12]})")
    for title in ("guidance", "power", "schedule", "temperature", "seed", "keep", "quantisation", "protocol", "resize"):
        if (value := getattr(record, title)) is not None:
            table.add_row(title, str(value))
    table.add_row("comparable", "yes" if record.comparable else "no: " + "; ".join(record.reasons))
    Console().print(table)
