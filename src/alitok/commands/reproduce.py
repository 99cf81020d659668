"""Reproduce the published FID and Inception Score from the published weights, with the result pass or fail.

The command imports the weight files of the public release, draws samples with the published guidance, power and seed,
measures them by the ADM protocol and compares FID and Inception Score with the published ones. After an interruption
the same command continues; torchrun shares the work. The exit status is 1 if the numbers are not reproduced.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from alitok.artifacts.presets import PRESETS, Preset

if TYPE_CHECKING:
    import torch

    from alitok.evaluation.record import EvaluationRecord

RESULT = "reproduce.json"
IMAGE_SIZE = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from alitok.commands.options import add_speed_arguments

    parser.add_argument("size", choices=PRESETS, help="which of the published generators")
    parser.add_argument("--tokenizer-weights", required=True, type=Path, metavar="FILE", help="AliTok.pth")
    parser.add_argument("--generator-weights", required=True, type=Path, metavar="FILE", help="alitok_{b,l,xl}.bin")
    parser.add_argument("--reference", required=True, metavar="REF", help="ADM's VIRTUAL_imagenet256_labeled.npz")
    parser.add_argument("--extractor", default="inception", metavar="FILE", help="see alitok evaluate")
    parser.add_argument(
        "--count", type=int, metavar="N", help="fewer samples, to try it out: no verdict (default: the published)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where artifacts, samples and result go (default: runs/reproduce/SIZE)"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the result goes (default: reproduce.json in --out)"
    )
    add_speed_arguments(parser)
    parser.epilog = (
        "example: alitok reproduce 177M --tokenizer-weights AliTok.pth --generator-weights alitok_b.bin"
        " --reference VIRTUAL_imagenet256_labeled.npz"
    )


def run(args: argparse.Namespace) -> None:
    import sys
    from datetime import timedelta

    import torch

    from alitok.common.devices import pick_device
    from alitok.common.distributed import process_group, rank
    from alitok.common.errors import BadInput

    preset = PRESETS[args.size]
    args.out = args.out or Path("runs/reproduce") / args.size
    if args.count is not None and not 2 <= args.count <= preset.count:
        raise BadInput(f"--count must lie in 2..{preset.count:,}, not {args.count}.")
    with process_group(pick_device(args.device), patience=timedelta(days=1)) as device:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, as the published samples were drawn
        record = reproduce(args, preset, device)
        count = args.count or preset.count
        result = verdict(preset, count, record)
        if rank() == 0:
            report(args, preset, count, record, result)
    if result == "fail":
        sys.exit(1)


def reproduce(args: argparse.Namespace, preset: Preset, device: "torch.device") -> "EvaluationRecord":
    """Import, draw and measure. A collective.

    Raises:
        BadInput: a missing file, or weights of another size.
    """
    from alitok.artifacts.folder import check_pair, load_generator, load_tokenizer
    from alitok.common.distributed import all_or_none, rank
    from alitok.common.draw import Draw
    from alitok.common.errors import BadInput
    from alitok.common.files import check_writable
    from alitok.evaluation.gfid import Samples, evaluate_samples
    from alitok.evaluation.protocol import is_spec, open_spec, pick_extractor
    from alitok.evaluation.reference import file_reference, refuse_for_samples
    from alitok.sampling.sets import draw_set, set_settings

    samples = args.out / f"samples-{args.count or preset.count}.npz"
    measuring = Samples(str(samples), args.reference, args.extractor)
    # bad inputs are refused in the first seconds, not after hours of drawing
    check_writable(args.json or args.out / RESULT)
    extractor = pick_extractor(measuring.protocol, measuring.extractor, device)
    if is_spec(args.reference):
        open_spec(args.reference, "train", IMAGE_SIZE)
    else:
        refuse_for_samples(file_reference(Path(args.reference), extractor))
    del extractor
    folders = {"tokenizer": args.tokenizer_weights, "generator": args.generator_weights}
    with all_or_none():
        for kind, file in folders.items() if rank() == 0 else ():
            import_once(file, args.out / kind)
    generator = load_generator(args.out / "generator", device)
    tokenizer = load_tokenizer(args.out / "tokenizer", device)
    check_pair(generator, tokenizer)
    size = (generator.heads * generator.head_dim, len(generator.blocks))
    if size != (preset.width, preset.depth):
        raise BadInput(
            f"{args.generator_weights} holds a generator of width {size[0]} and {size[1]} layers, {args.size} has"
            f" {preset.width} and {preset.depth}; give the weights of that size."
        )
    draw = Draw(
        preset.guidance,
        preset.power,
        seed=preset.seed,
        precision=args.precision,
        compiled=args.compile,
        window=args.window,
        noise=args.noise,
    )
    names = (args.generator_weights.name, args.tokenizer_weights.name)
    settings = set_settings(generator, tokenizer, names, draw, args.count or preset.count)
    draw_set(generator, tokenizer, samples, settings, args.batch)
    del generator, tokenizer
    return evaluate_samples(measuring, device)


def import_once(file: Path, folder: Path) -> None:
    """Import a file of the release, unless the folder holds the artifact of the same file."""
    from alitok.artifacts.folder import CARD, read_card
    from alitok.artifacts.published import import_release
    from alitok.common.errors import BadInput
    from alitok.common.files import sha256

    known = read_card(folder)["parents"] if (folder / CARD).is_file() else {}
    if not file.is_file() or known != {file.name: sha256(file)}:
        import_release(file, folder)
    if (kind := read_card(folder)["kind"]) != folder.name:
        raise BadInput(f"{file} holds a {kind}, not a {folder.name}; are the two files of weights swapped?")


def verdict(preset: Preset, count: int, record: "EvaluationRecord") -> str | None:
    """ "pass" if both numbers are within their tolerances, else "fail"; None if the number of samples differs."""
    if count != preset.count:
        return None
    fid, score = record.fid, record.inception_score
    near = fid is not None and abs(fid - preset.fid) <= preset.fid_tolerance
    if score is None or abs(score - preset.inception_score) > preset.inception_score_tolerance:
        near = False
    return "pass" if near else "fail"


def report(
    args: argparse.Namespace, preset: Preset, count: int, record: "EvaluationRecord", result: str | None
) -> None:
    """Print the table and write the JSON: `size`, `verdict`, `preset`, `record` (as `alitok evaluate --json`)."""
    from rich.console import Console
    from rich.table import Table

    from alitok.common.files import write_json

    content = {"size": args.size, "verdict": result, "preset": asdict(preset), "record": record.to_dict()}
    write_json(args.json or args.out / RESULT, content)
    table = Table(title=f"{args.size}: {count:,} samples, guidance {preset.guidance:g}, power {preset.power:g}")
    for heading in ("measure", "published", "found", "tolerance"):
        table.add_column(heading)
    for title, name in (("FID", "fid"), ("Inception Score", "inception_score")):
        found = getattr(record, name)
        table.add_row(
            title,
            str(getattr(preset, name)),
            "none" if found is None else f"{found:.4f}",
            f"{getattr(preset, f'{name}_tolerance'):g}",
        )
    table.add_row("comparable", "", "yes" if record.comparable else "no: " + "; ".join(record.reasons), "")
    Console().print(table)
    print(f"{args.size}: {result or f'no verdict, {count:,} samples instead of {preset.count:,}'}")
