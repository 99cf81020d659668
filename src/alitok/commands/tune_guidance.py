"""Search for the guidance scale and power with the least FID, with few samples and with the error of each number.

Every setting uses the same classes and random numbers, so settings are compared in pairs: the error of a difference is
far below that of each FID. Features are stored in --out: a stopped or widened search, or one with a larger --count,
draws only what is missing. With few samples FID is higher than with 50,000, by about the same amount for every setting:
compare settings with each other, not with papers.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from alitok.commands.options import add_speed_arguments

    parser.add_argument("--generator", required=True, metavar="DIR", help="generator artifact")
    parser.add_argument("--tokenizer", required=True, metavar="DIR", help="tokenizer artifact that decodes")
    parser.add_argument("--reference", required=True, metavar="REF", help="see alitok evaluate")
    parser.add_argument("--extractor", default="inception", metavar="FILE", help="see alitok evaluate")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="where features are kept")
    parser.add_argument(
        "--scales",
        type=numbers,
        default=[1.5, 3.0, 6.0, 12.0],
        metavar="S,...",
        help="to begin with (default 1.5,3,6,12)",
    )
    parser.add_argument(
        "--powers", type=numbers, default=[0.7, 1.4, 2.8], metavar="P,...", help="to begin with (default 0.7,1.4,2.8)"
    )
    parser.add_argument(
        "--schedule", default="power-cosine", metavar="NAME", help="power-cosine (default), constant, linear or softcfg"
    )
    parser.add_argument(
        "--refine", type=int, default=1, metavar="N", help="rounds halfway from the best to its neighbors (default 1)"
    )
    parser.add_argument("--count", type=int, default=2000, metavar="N", help="samples of each setting (default 2000)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="logits are divided by it (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default 0)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="where the result goes (default: guidance.json in --out)"
    )
    add_speed_arguments(parser)
    parser.epilog = (
        "example: alitok tune-guidance --generator runs/demo/generator/artifact --tokenizer runs/demo/stage2/artifact"
        " --extractor runs/demo/classifier --reference shapes --count 500 --out runs/demo/guidance"
    )


def numbers(text: str) -> list[float]:
    """The positive numbers in a text like "1.5,3"."""
    from alitok.common.errors import BadInput

    try:
        found = sorted({float(word) for word in text.split(",")})
    except ValueError as error:
        raise BadInput(f"{text!r} should be numbers with commas between them, e.g. 1.5,3,6.") from error
    if not all(0 < number < float("inf") for number in found):
        raise BadInput(f"{text!r}: scales and powers must be above 0.")
    return found


def run(args: argparse.Namespace) -> None:
    from datetime import timedelta

    import torch

    from alitok.common.devices import pick_device
    from alitok.common.distributed import group_alone_in, process_group, rank
    from alitok.common.errors import BadInput
    from alitok.common.files import check_writable
    from alitok.evaluation.fid import GROUPS
    from alitok.studies.guidance_search import Search, report

    if args.count < 2 * GROUPS:
        raise BadInput(f"--count must be at least {2 * GROUPS}, not {args.count}.")
    if args.refine < 0:
        raise BadInput(f"--refine must be 0 or more, not {args.refine}.")
    result = args.json or args.out / "guidance.json"
    if args.json is not None:
        check_writable(args.json)
    with process_group(pick_device(args.device), patience=timedelta(days=1)) as device:
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        with group_alone_in(args.out):
            search = Search(args, device)
            found = search.run()
            if rank() == 0:
                report(found, search, result)
